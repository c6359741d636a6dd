# Mutual TLS: whose certificates clients must show, and what was revoked.

gateway "edge" {
  # Clients of the issuers of a Vault PKI mount; what the mount revoked is refused.
  listener "partners" {
    port     = 8443
    protocol = "https"

    tls {
      certificates = ["www"]

      client_ca {
        forward_client_cert = true

        vault_pki {
          mount = "pki_clients"
          crl   = true
        }
      }
    }
  }

  # PEM texts in a KV secret. A client may come without a certificate; one that it shows must be good.
  listener "open" {
    port     = 9443
    protocol = "https"

    tls {
      certificates = ["www"]

      client_ca {
        mode = "optional"

        vault_kv {
          mount       = "secret"
          path        = "portreeve/clients"
          certificate = "ca.pem"
          crl         = "ca.crl"
        }
      }
    }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

http_route "site" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    backend "consul" "site" {}
  }
}
