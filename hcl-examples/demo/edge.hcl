# The ports, and the certificate they show. `make demo` stores this text in Consul KV as portreeve/config/edge.

gateway "edge" {
  listener "plain" {
    port = 18080
  }

  listener "secure" {
    port     = 18443
    protocol = "https"

    tls { certificates = ["shop"] }
  }
}

# Issued by Vault, renewed by the agent. The private key stays in memory.
certificate "shop" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "shop.example.com"
    ttl         = "1h"
  }
}
