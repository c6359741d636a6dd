# Connections passed on as they are: a database by its port, a message broker out of TLS, a service of the mesh.

gateway "edge" {
  listener "postgres" {
    port         = 5432
    protocol     = "tcp"
    idle_timeout = "8h"
  }

  # TLS ends here; the broker gets what was inside.
  listener "mqtt" {
    port            = 8883
    protocol        = "tcp"
    max_connections = 20000
    tls { certificates = ["mqtt"] }
  }

  listener "ledger" {
    port     = 7000
    protocol = "tcp"
  }
}

certificate "mqtt" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "mqtt.example.com"
  }
}

tcp_route "postgres" {
  gateways         = ["edge"]
  listeners        = ["postgres"]
  connect_attempts = 5

  backend "consul" "postgres" {}
}

# A share of new connections goes to the next version.
tcp_route "mqtt" {
  gateways  = ["edge"]
  listeners = ["mqtt"]

  backend "consul" "mqtt" { weight = 90 }
  backend "consul" "mqtt-next" { weight = 10 }
}

# A service of the mesh that speaks tcp to Consul.
tcp_route "ledger" {
  gateways  = ["edge"]
  listeners = ["ledger"]

  backend "upstream" "ledger" {}
}

upstream "ledger" {
  connect {}
}
