# Certificates: where they come from. Which one is served is decided by the name in the client's handshake (SNI).

gateway "edge" {
  listener "web" {
    port     = 8443
    protocol = "https"

    tls {
      certificates = ["issued", "bought", "kept", "local"]
      min_version  = "1.3"
    }
  }
}

# Issued by Vault's PKI engine, renewed at two thirds of its life.
certificate "issued" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
    alt_names   = ["*.apps.example.com"]
    ttl         = "72h"
  }
}

# PEM texts in a KV secret, read again when its version changes.
certificate "bought" {
  vault_kv {
    mount       = "secret"
    path        = "edge/bought"
    certificate = "tls.crt"
    private_key = "tls.key"
  }
}

# PEM texts in a variable of Nomad's, watched. This one the agent's own job may read without any policy.
certificate "kept" {
  nomad_variable {
    path        = "nomad/jobs/portreeve"
    certificate = "kept_pem"
    private_key = "kept_key"
  }
}

# Files on the agent's machine. A document from Consul KV may name none unless the agent's settings list it.
certificate "local" {
  file {
    certificate = "/etc/portreeve/local.pem"
    private_key = "/etc/portreeve/local.key"
  }
}

http_route "site" {
  gateways  = ["edge"]
  hostnames = ["www.example.com", "shop.example.com", "kept.example.com", "local.example.com"]

  rule "all" {
    backend "consul" "site" {}
  }
}
