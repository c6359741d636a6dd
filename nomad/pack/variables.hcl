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
