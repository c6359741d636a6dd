# Where requests go. `make demo` stores this text in Consul KV as portreeve/config/shop.

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  # Nine of ten requests to the version in service, one to the next one.
  # /api/orders/7 arrives at the service as /orders/7.
  rule "orders" {
    match { path_prefix = "/api" }

    rewrite { path_prefix = "/" }

    backend "consul" "orders" { weight = 90 }
    backend "consul" "orders-next" { weight = 10 }
  }

  # A second condition makes this rule more specific: it wins over the one above.
  rule "orders-preview" {
    match {
      path_prefix = "/api"

      header "x-preview" { exact = "yes" }
    }

    rewrite { path_prefix = "/" }

    backend "consul" "orders-next" {}
  }

  # Nobody has registered this service: 503 with a reason, not a 404.
  rule "invoices" {
    match { path_prefix = "/invoices" }

    backend "consul" "invoices" {}
  }

  rule "old-shop" {
    match { path_prefix = "/old" }

    redirect {
      scheme      = "https"
      port        = 18443
      path_prefix = "/api"
      status      = 308
    }
  }
}
