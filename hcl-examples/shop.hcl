# A shop behind TLS: the certificate comes from Vault, the instances from the Consul catalog.
#
#   consul kv put portreeve/config/shop @hcl-examples/shop.hcl

gateway "edge" {
  listener "web" {
    port     = 8443
    protocol = "https"

    tls { certificates = ["www"] }
  }

  # Plain HTTP, to send people on to HTTPS.
  listener "plain" {
    port = 8080
  }
}

# Issued by Vault's PKI engine and renewed at two thirds of its life. The key stays in memory.
certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "shop.example.com"
    alt_names   = ["www.example.com"]
    ttl         = "72h"
  }
}

http_route "shop" {
  gateways  = ["edge"]
  listeners = ["web"]
  hostnames = ["shop.example.com", "www.example.com"]

  # On the route: every rule below inherits it.
  timeout = "30s"

  retry {
    attempts = 2
    on       = ["connect-failure", "gateway-error"]
  }

  # Nine of ten requests to the version in service, one to the next one. "orders" is a service's name in Consul.
  rule "orders" {
    match {
      path_prefix = "/api/orders"
      methods     = ["GET", "POST"]
    }

    # The service knows nothing of "/api": /api/orders/7 arrives as /orders/7.
    rewrite { path_prefix = "/orders" }

    backend "consul" "orders" { weight = 90 }
    backend "consul" "orders-next" { weight = 10 }
  }

  # Testers choose the next version by a header. Same path, one more condition: it wins over the rule above.
  rule "orders-preview" {
    match {
      path_prefix = "/api/orders"
      methods     = ["GET", "POST"]

      header "x-preview" { exact = "orders" }
    }

    rewrite { path_prefix = "/orders" }
    timeout = "5s"

    backend "consul" "orders-next" {}
  }

  rule "pages" {
    backend "upstream" "frontend" {}
  }
}

http_route "to-https" {
  gateways  = ["edge"]
  listeners = ["plain"]
  hostnames = ["shop.example.com", "www.example.com"]

  rule "all" {
    redirect {
      scheme = "https"
      port   = 8443
      status = 308
    }
  }
}

# A Consul service with settings of its own gets an upstream; without any, the backend names the service directly.
upstream "frontend" {
  consul {
    service      = "frontend"
    only_passing = true
  }

  connect_timeout = "1s"

  circuit_breaker {
    max_requests = 2000
  }
}
