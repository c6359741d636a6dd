# A member of Consul's mesh: Consul's built-in proxy speaks the mesh's TLS in front of it, with a token that Nomad gets by the
# service's identity. Nomad's own sidecar is an Envoy that Consul configures over its xDS, which takes a bridge network and
# versions of the two that fit each other; what the gateway meets is the same.

variable "release" {
  type = string
}

variable "server" {
  description = "Path of server.py."
  type        = string
}

job "petstore" {
  type = "service"

  update {
    max_parallel     = 1
    canary           = 2
    auto_promote     = true
    min_healthy_time = "1s"
    healthy_deadline = "1m"
  }

  group "petstore" {
    count          = 2
    shutdown_delay = "3s"

    network {
      mode = "host"
      port "http" {}
      port "mesh" {}
    }

    service {
      name     = "petstore"
      provider = "consul"
      port     = "mesh"
      task     = "proxy"

      connect {
        native = true
      }

      check {
        name     = "proxy"
        type     = "tcp"
        interval = "1s"
        timeout  = "5s"

        # A machine that runs all of this stalls now and then.
        failures_before_critical = 3
      }

      check {
        name     = "server"
        type     = "http"
        port     = "http"
        path     = "/"
        interval = "1s"
        timeout  = "5s"

        # A machine that runs all of this stalls now and then.
        failures_before_critical = 3
      }
    }

    task "proxy" {
      driver = "raw_exec"

      # CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN are Nomad's, since the service is native.
      config {
        command = "consul"
        args = [
          "connect", "proxy", "-service", "petstore", "-service-addr", "127.0.0.1:${NOMAD_PORT_http}",
          "-listen", "127.0.0.1:${NOMAD_PORT_mesh}",
        ]
      }

      resources {
        cpu    = 20
        memory = 64
      }
    }

    task "server" {
      driver = "raw_exec"

      config {
        command = "python3"
        args    = [var.server, "${NOMAD_PORT_http}", var.release]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
