# A service that is registered in Nomad itself. Nomad says nothing of its health, so Envoy asks.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "billing" {
  gateways  = ["edge"]
  hostnames = ["billing.example.com"]

  rule "grpc" {
    match {
      path_prefix = "/billing.v1.Invoices"
    }
    backend "upstream" "invoices" {}
  }

  rule "all" {
    backend "upstream" "billing" {}
  }
}

upstream "billing" {
  nomad {
    namespace = "*"
    filter    = "\"v2\" in Tags"
  }

  health_check {
    path              = "/healthz"
    host              = "billing.internal"
    interval          = "2s"
    healthy_threshold = 1
  }
}

upstream "invoices" {
  protocol = "http2"

  nomad {
    service = "billing-grpc"
  }

  health_check {
    grpc_service = "billing.v1.Invoices"
  }
}
