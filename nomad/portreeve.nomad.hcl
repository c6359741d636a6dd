# Portreeve on every node of a pool: an agent and an Envoy, two tasks that talk over unix sockets in the allocation.
#
#   nomad job run -var gateway=edge nomad/portreeve.nomad.hcl
#
# Needs on the nodes: portreeve, envoy (1.36 to 1.40), a Consul agent on loopback. Needs in the cluster: workload
# identity for Consul and Vault, and the gateway's document in Consul KV. nomad/README.md has the commands, what was tried,
# and what differs under raw_exec.

variable "job" {
  description = "The job's name. A second gateway is a job of its own: under one name it takes the first one's place."
  type        = string
  default     = "portreeve"
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "type" {
  description = "system: on every node of the pool. service: on `count` of them."
  type        = string
  default     = "system"
}

variable "count" {
  description = "How many gateways a service job has. A system job has one on each node, whatever this says."
  type        = number
  default     = 1
}

variable "gateway" {
  description = "The gateway that these nodes serve. Its document is in Consul KV."
  type        = string
  default     = "edge"
}

variable "http_port" {
  description = "The port of the gateway's http listener, as in its document."
  type        = number
  default     = 80
}

variable "https_port" {
  description = "The port of the gateway's https listener, as in its document."
  type        = number
  default     = 443
}

variable "ready_port" {
  description = "A loopback port for /ready and /metrics."
  type        = number
  default     = 7480
}

variable "ready_address" {
  description = "The loopback address of it."
  type        = string
  default     = "127.0.0.1"
}

variable "bind_address" {
  description = "Where the gateway's listeners bind, if their document does not say. May name the node: \"$${meta.public_ip}\"."
  type        = string
  default     = "0.0.0.0"
}

variable "public_address" {
  description = "What the gateway is registered with, such as \"$${attr.unique.platform.aws.public-ipv4}\". Empty: the node's own address."
  type        = string
  default     = ""
}

variable "driver" {
  description = "exec or raw_exec."
  type        = string
  default     = "exec"
}

variable "user" {
  description = "Who the tasks run as: all three the same."
  type        = string
  default     = "nobody"
}

variable "data_dir" {
  description = "State and sockets. The default is the allocation's directory as a task under exec sees it. Sockets limit its length to 62 bytes."
  type        = string
  default     = "/alloc/data"
}

variable "portreeve" {
  type    = string
  default = "/usr/local/bin/portreeve"
}

variable "envoy" {
  type    = string
  default = "/usr/local/bin/envoy"
}

variable "consul_address" {
  type    = string
  default = "127.0.0.1:8500"
}

variable "consul_method" {
  description = "Consul's auth method by which the agent logs in. {job} is the job's name."
  type        = string
  default     = "{job}"
}

variable "vault_address" {
  type    = string
  default = "https://vault.service.consul:8200"
}

variable "vault_mount" {
  description = "Where Vault's JWT method for Nomad is mounted."
  type        = string
  default     = "jwt-nomad"
}

variable "vault_role" {
  description = "Its role of the agent. {job} is the job's name."
  type        = string
  default     = "{job}"
}

variable "vault_paths" {
  description = "Paths of Vault that documents from KV may use."
  type        = list(string)
  default     = ["pki_int/sign/edge", "secret/portreeve/"]
}

variable "nomad_variables" {
  description = "Nomad variables that documents from KV may use for certificates; those of this job, {job}, need no more rights."
  type        = list(string)
  default     = ["nomad/jobs/{job}"]
}

variable "agent_cpu" {
  description = "MHz."
  type        = number
  default     = 200
}

variable "agent_memory" {
  description = "MiB."
  type        = number
  default     = 256
}

variable "envoy_cpu" {
  description = "MHz."
  type        = number
  default     = 1000
}

variable "envoy_memory" {
  description = "MiB."
  type        = number
  default     = 512
}

variable "envoy_memory_max" {
  description = "MiB that it may take where others leave it room, if Nomad's scheduler has memory oversubscription. 0: no more than the above."
  type        = number
  default     = 0
}

variable "envoy_settings" {
  description = "More of the `envoy` block in HCL, such as `concurrency = 4`, for agent and Envoy."
  type        = string
  default     = ""
}

variable "more_settings" {
  description = "More of the agent's settings in HCL, such as `nomad {}` or a catalog block."
  type        = string
  default     = ""
}

variable "drain_seconds" {
  description = "How long Envoy asks clients to leave before it ends. The node's max_kill_timeout must allow 5 s more."
  type        = number
  default     = 20
}

variable "release" {
  description = "Whatever names what is installed on the nodes: with another one the job is updated, though its files are the same."
  type        = string
  default     = ""
}

variable "healthy_deadline" {
  description = "How long an updated node may take to pass its checks, before the update is reverted."
  type        = string
  default     = "2m"
}

locals {
  # Two jobs may be on one node, and each writes its status under a name of its own.
  beside = var.job == "portreeve" ? "" : "-${var.job}"

  # What agent and Envoy must agree on.
  shared = <<-HCL
    gateways  = ["${var.gateway}"]
    node_name = "{{ env "node.unique.name" }}${local.beside}"
    data_dir  = "${var.data_dir}"

    envoy {
      supervise  = false
      binary     = "${var.envoy}"
      drain_time = "${var.drain_seconds}s"

      ${var.envoy_settings}
    }
  HCL

  agent = <<-HCL
    bind_addr = "{{ env "BIND_ADDRESS" }}"

    # Documents are the keys below portreeve/config/. They may use these paths of Vault and variables of Nomad, and no file
    # of the node.
    kv_documents {
      vault_paths     = ${jsonencode(var.vault_paths)}
      nomad_variables = ${jsonencode([for path in var.nomad_variables : replace(path, "{job}", var.job)])}
    }

    consul {
      address = "${var.consul_address}"

      login {
        method            = "${replace(var.consul_method, "{job}", var.job)}"
        bearer_token_file = "{{ env "NOMAD_SECRETS_DIR" }}/nomad_consul.jwt"
        token_sink_file   = "{{ env "NOMAD_SECRETS_DIR" }}/portreeve_consul_token"
      }
    }

    vault {
      address = "${var.vault_address}"

      jwt {
        mount    = "${var.vault_mount}"
        role     = "${replace(var.vault_role, "{job}", var.job)}"
        jwt_file = "{{ env "NOMAD_SECRETS_DIR" }}/nomad_vault.jwt"
      }
    }

    api {
      address = "{{ env "READY_ADDRESS" }}:${var.ready_port}"
    }

    ${var.more_settings}
  HCL
}

job "portreeve" {
  id          = var.job
  name        = var.job
  datacenters = var.datacenters
  node_pool   = var.node_pool
  namespace   = var.namespace
  type        = var.type
  priority    = 90

  meta {
    release = var.release
  }

  # One node after the other, the next one only when this one is healthy. A node has each port once, so its old allocation
  # stops before its new one starts: keep two nodes behind the load balancer.
  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "10s"
    healthy_deadline = var.healthy_deadline
    auto_revert      = true
  }

  group "gateway" {
    # A node has each port once, so no two of them are on one node.
    count = var.type == "service" ? var.count : 1

    # Out of Consul first, so that load balancers and DNS let go; then drain; then stop.
    shutdown_delay = "5s"

    # Servers that hear nothing of a node do not give its gateway up: it serves on, and where all of them were cut off, all
    # would be started again at once when they are back. One of a service job has another beside it meanwhile.
    disconnect {
      lost_after = "24h"
      replace    = var.type == "service"
      reconcile  = "keep_original"
    }

    network {
      mode = "host"

      port "http" {
        static = var.http_port
      }

      port "https" {
        static = var.https_port
      }

      port "ready" {
        static = var.ready_port
      }
    }

    # An edge node never gives up, and nobody serves there while Envoy is not back.
    restart {
      attempts = 30
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }

    # The state goes on to the next allocation on this node: it starts with the last known documents if Consul is away.
    ephemeral_disk {
      sticky = true
      size   = 300
    }

    # What load balancers look for: Envoy listens.
    service {
      name     = "portreeve-${var.gateway}"
      provider = "consul"
      port     = "https"
      address  = var.public_address

      check {
        name     = "listener"
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    # What the update waits for: the agent has published. On loopback, asked by the node's Consul agent.
    service {
      name     = "portreeve-${var.gateway}-agent"
      provider = "consul"
      port     = "ready"
      address  = var.ready_address

      check {
        name     = "ready"
        type     = "http"
        path     = "/ready"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "agent" {
      driver       = var.driver
      user         = var.user
      kill_timeout = "15s"

      # Starts before Envoy, ends after it. Envoy serves on without it, and knows of no change meanwhile.
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      # The agent reads Nomad's services with this one, over the task API's socket, if its settings have `nomad {}`.
      identity {
        file = true
      }

      # The agent logs in at Consul and Vault with these, by itself, and again whenever it must.
      identity {
        name        = "consul"
        aud         = ["consul.io"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      identity {
        name        = "vault"
        aud         = ["vault.io"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      # Here, and not in the settings, because Nomad fills in the node's values here.
      env {
        BIND_ADDRESS  = var.bind_address
        READY_ADDRESS = var.ready_address
      }

      config {
        command = var.portreeve
        args    = ["agent", "-config", "${NOMAD_TASK_DIR}/portreeve.hcl"]
      }

      template {
        destination   = "${NOMAD_TASK_DIR}/portreeve.hcl"
        data          = "${local.shared}\n${local.agent}"
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      resources {
        cpu    = var.agent_cpu
        memory = var.agent_memory
      }
    }

    # Writes Envoy's bootstrap and becomes Envoy.
    task "envoy" {
      driver       = var.driver
      user         = var.user
      kill_timeout = "10s"

      config {
        command = var.portreeve
        args    = ["envoy", "run", "-config", "${NOMAD_TASK_DIR}/portreeve.hcl"]
      }

      template {
        destination = "${NOMAD_TASK_DIR}/portreeve.hcl"
        data        = local.shared
        change_mode = "noop"
      }

      resources {
        cpu        = var.envoy_cpu
        memory     = var.envoy_memory
        memory_max = var.envoy_memory_max
      }
    }

    # Nomad stops the leader first and waits for it: told to end, it lets Envoy drain. Envoy alone would end at once.
    task "drain" {
      driver       = var.driver
      user         = var.user
      leader       = true
      kill_timeout = "${var.drain_seconds + 5}s"

      config {
        command = var.portreeve
        args    = ["envoy", "drain", "-when-stopped", "-finish-time", "4s", "-config", "${NOMAD_TASK_DIR}/portreeve.hcl"]
      }

      template {
        destination = "${NOMAD_TASK_DIR}/portreeve.hcl"
        data        = local.shared
        change_mode = "noop"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
