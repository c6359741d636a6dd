# A service in Nomad's own catalog, for a namespace to choose; or many that are one, of which every release moves all.

variable "namespace" {
  type    = string
  default = "default"
}

variable "name" {
  type    = string
  default = "stock"
}

variable "count" {
  type    = number
  default = 1
}

variable "services" {
  description = "How many services each instance registers, numbered if there are more than one."
  type        = number
  default     = 1
}

variable "release" {
  type = string
}

variable "server" {
  description = "Path of server.py."
  type        = string
}

job "stock" {
  name      = var.name
  id        = var.name
  namespace = var.namespace
  type      = "service"

  # The new one beside the old one, and then the old one's end.
  update {
    max_parallel     = 1
    canary           = 1
    auto_promote     = true
    health_check     = "task_states"
    min_healthy_time = "1s"
    healthy_deadline = "1m"
  }

  group "stock" {
    count          = var.count
    shutdown_delay = "3s"

    network {
      mode = "host"
      port "http" {}
    }

    dynamic "service" {
      for_each = range(var.services)

      content {
        name     = var.services == 1 ? var.name : "${var.name}-${service.value}"
        provider = "nomad"
        port     = "http"
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
