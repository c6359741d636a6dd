# A service of Consul's mesh: the gateway shows its own certificate and follows the service's discovery chain. The agent's
# settings say who the gateway is there: `mesh { service = "edge-gw" }`.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "pets" {
    match { path_prefix = "/pets" }
    rewrite { path_prefix = "/" }

    backend "upstream" "petstore" {}
  }

  # On its way into the mesh: one share goes there already.
  rule "orders" {
    match { path_prefix = "/orders" }

    backend "consul" "orders" { weight = 90 }
    backend "upstream" "orders-in-mesh" { weight = 10 }
  }

  # In another cluster, over a peering.
  rule "invoices" {
    match { path_prefix = "/invoices" }

    backend "upstream" "invoices" {}
  }
}

upstream "petstore" {
  connect {}

  circuit_breaker {
    max_requests = 500
  }
}

upstream "orders-in-mesh" {
  connect { service = "orders" }

  # Over what the discovery chain says.
  load_balancer   = "round_robin"
  connect_timeout = "500ms"
}

# Dialed by the gateway's own sidecar, which knows whom to trust there.
upstream "invoices" {
  connect {
    peer    = "west"
    sidecar = true
  }
}
