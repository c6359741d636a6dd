variable "job" {
  description = "The job's name. A second gateway is a job of its own: under one name it takes the first one's place."
  type        = string
  default     = [[ var "job" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "datacenters" {
  type    = list(string)
  default = [[ var "datacenters" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "node_pool" {
  type    = string
  default = [[ var "node_pool" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "namespace" {
  type    = string
  default = [[ var "namespace" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "type" {
  description = "system: on every node of the pool. service: on `count` of them."
  type        = string
  default     = [[ var "type" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "count" {
  description = "How many gateways a service job has. A system job has one on each node, whatever this says."
  type        = number
  default     = [[ var "count" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "gateway" {
  description = "The gateway that these nodes serve. Its document is in Consul KV."
  type        = string
  default     = [[ var "gateway" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "http_port" {
  description = "The port of the gateway's http listener, as in its document."
  type        = number
  default     = [[ var "http_port" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "https_port" {
  description = "The port of the gateway's https listener, as in its document."
  type        = number
  default     = [[ var "https_port" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "ready_port" {
  description = "A loopback port for /ready and /metrics."
  type        = number
  default     = [[ var "ready_port" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "ready_address" {
  description = "The loopback address of it."
  type        = string
  default     = [[ var "ready_address" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "bind_address" {
  description = "Where the gateway's listeners bind, if their document does not say. May name the node: \"$${meta.public_ip}\"."
  type        = string
  default     = [[ var "bind_address" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "public_address" {
  description = "What the gateway is registered with, such as \"$${attr.unique.platform.aws.public-ipv4}\". Empty: the node's own address."
  type        = string
  default     = [[ var "public_address" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "driver" {
  description = "exec or raw_exec."
  type        = string
  default     = [[ var "driver" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "user" {
  description = "Who the tasks run as: all three the same."
  type        = string
  default     = [[ var "user" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "data_dir" {
  description = "State and sockets. The default is the allocation's directory as a task under exec sees it. Sockets limit its length to 62 bytes."
  type        = string
  default     = [[ var "data_dir" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "portreeve" {
  type    = string
  default = [[ var "portreeve" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "envoy" {
  type    = string
  default = [[ var "envoy" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "consul_address" {
  type    = string
  default = [[ var "consul_address" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "consul_method" {
  description = "Consul's auth method by which the agent logs in. {job} is the job's name."
  type        = string
  default     = [[ var "consul_method" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "vault_address" {
  type    = string
  default = [[ var "vault_address" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "vault_mount" {
  description = "Where Vault's JWT method for Nomad is mounted."
  type        = string
  default     = [[ var "vault_mount" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "vault_role" {
  description = "Its role of the agent. {job} is the job's name."
  type        = string
  default     = [[ var "vault_role" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "vault_paths" {
  description = "Paths of Vault that documents from KV may use."
  type        = list(string)
  default     = [[ var "vault_paths" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "nomad_variables" {
  description = "Nomad variables that documents from KV may use for certificates; those of this job, {job}, need no more rights."
  type        = list(string)
  default     = [[ var "nomad_variables" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "agent_cpu" {
  description = "MHz."
  type        = number
  default     = [[ var "agent_cpu" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "agent_memory" {
  description = "MiB."
  type        = number
  default     = [[ var "agent_memory" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "envoy_cpu" {
  description = "MHz."
  type        = number
  default     = [[ var "envoy_cpu" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "envoy_memory" {
  description = "MiB."
  type        = number
  default     = [[ var "envoy_memory" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "envoy_memory_max" {
  description = "MiB that it may take where others leave it room, if Nomad's scheduler has memory oversubscription. 0: no more than the above."
  type        = number
  default     = [[ var "envoy_memory_max" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "envoy_settings" {
  description = "More of the `envoy` block in HCL, such as `concurrency = 4`, for agent and Envoy."
  type        = string
  default     = [[ var "envoy_settings" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "more_settings" {
  description = "More of the agent's settings in HCL, such as `nomad {}` or a catalog block."
  type        = string
  default     = [[ var "more_settings" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "drain_seconds" {
  description = "How long Envoy asks clients to leave before it ends. The node's max_kill_timeout must allow 5 s more."
  type        = number
  default     = [[ var "drain_seconds" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "release" {
  description = "Whatever names what is installed on the nodes: with another one the job is updated, though its files are the same."
  type        = string
  default     = [[ var "release" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
}

variable "healthy_deadline" {
  description = "How long an updated node may take to pass its checks, before the update is reverted."
  type        = string
  default     = [[ var "healthy_deadline" . | toJson | replace "${" "$${" | replace "%{" "%%{" ]]
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
