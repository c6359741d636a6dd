# Upstreams: where requests go. A backend may also name a Consul service directly.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "all" {
  gateways  = ["edge"]
  hostnames = ["example.com"]

  rule "catalog" {
    match { path_prefix = "/catalog" }

    backend "upstream" "catalog" {}
  }

  rule "legacy" {
    match { path_prefix = "/legacy" }

    # The old server knows itself by another name.
    rewrite {
      path_prefix = "/"
      hostname    = "legacy.internal"
    }

    backend "upstream" "legacy" {}
  }

  rule "fixed" {
    match { path_prefix = "/fixed" }

    backend "upstream" "fixed" {}
  }

  rule "rpc" {
    match { path_prefix = "/shop.v1.Orders" }

    backend "upstream" "orders-rpc" {}
  }
}

# Instances of a service in the Consul catalog, watched. Those in warning serve with their warning weight.
upstream "catalog" {
  consul {
    service = "catalog"
    filter  = "Service.Meta.version == v2"
  }

  load_balancer = "round_robin"
}

# A host name that Envoy resolves again and again.
upstream "legacy" {
  dns { address = "legacy.example.com:8080" }
}

# Fixed addresses, IPv6 in brackets.
upstream "fixed" {
  static { addresses = ["192.0.2.10:8080", "[2001:db8::10]:8080"] }

  circuit_breaker {
    max_connections      = 100
    max_pending_requests = 50
    max_requests         = 200
    max_retries          = 5
  }
}

# gRPC: HTTP/2 without TLS.
upstream "orders-rpc" {
  consul {
    service    = "orders"
    datacenter = "dc2"
    port       = "grpc"
  }

  protocol        = "http2"
  load_balancer   = "random"
  connect_timeout = "500ms"
}
