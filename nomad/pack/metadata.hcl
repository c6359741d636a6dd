app {
  url = ""
}

pack {
  name        = "portreeve"
  description = "A gateway for Consul, Vault and Nomad: an agent and an Envoy on every node of a pool."
  version     = "0.1.0"
}
