# One service in several datacenters: the agent's own first, the others while it has no healthy instance.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "all" {
    backend "upstream" "orders" {}
  }
}

upstream "orders" {
  consul {
    failover = ["dc2", "dc3"]
  }

  # Beside Consul's checks: Envoy turns to dc2 as soon as nothing here answers.
  health_check {
    interval = "2s"
  }
}
