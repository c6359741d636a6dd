# A service in two versions, registered in Consul with tags that expose it, and once more in Nomad itself.

variable "release" {
  type = string
}

variable "server" {
  description = "Path of server.py."
  type        = string
}

job "orders" {
  type = "service"

  update {
    max_parallel     = 1
    canary           = 2
    auto_promote     = true
    min_healthy_time = "1s"
    healthy_deadline = "1m"
  }

  group "consul" {
    count          = 2
    shutdown_delay = "3s"

    network {
      mode = "host"
      port "http" {}
    }

    service {
      name     = "orders"
      provider = "consul"
      port     = "http"
      tags     = ["portreeve.enable=true", "portreeve.host=orders.apps.example.com", "release-${var.release}"]

      check {
        type     = "http"
        path     = "/"
        interval = "1s"
        timeout  = "5s"

        # A machine that runs all of this stalls now and then.
        failures_before_critical = 3
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

  group "nomad" {
    count          = 2
    shutdown_delay = "3s"

    network {
      mode = "host"
      port "http" {}
    }

    service {
      name     = "orders-native"
      provider = "nomad"
      port     = "http"

      check {
        type     = "http"
        path     = "/"
        interval = "1s"
        timeout  = "5s"
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
