//! What documents from KV may not reach.

use portreeve::diagnostics::Code::NotAllowed;

use super::case::{Case, Stays};
use super::cases::{and, bad, gateway};
use super::world;

/// Where the gateway's certificate comes from while all is well.
const PKI: &str = "  vault_pki {\n    mount       = \"pki\"\n    role        = \"edge\"\n    common_name = \"shop.example.com\"\n  }\n";

/// A gateway that this agent does not serve, whose agent may read what this one may not.
const OTHERS: &str = r#"gateway "guest" {
  listener "web" {
    port     = 9443
    protocol = "https"

    tls {
      certificates = ["other"]

      client_ca {
        vault_pki { mount = "pki" }
      }
    }
  }
}

certificate "other" {
  nomad_variable { path = "nomad/jobs/guest" }
}
"#;

pub fn all() -> Vec<Case> {
    let upstream = |source: &str| and(&format!("upstream \"u\" {{\n  {source}\n}}\n"));
    let kv = |what, text: String| bad(what, text, &[NotAllowed]).put_in_kv();
    let listener = |port: u16| {
        gateway(
            "gateway \"edge\" {\n",
            &format!("gateway \"edge\" {{\n  listener \"new\" {{\n    port = {port}\n  }}\n\n"),
        )
    };
    let clients = |source: &str| {
        gateway(
            "    tls { certificates = [\"www\"] }\n",
            &format!(
                "    tls {{\n      certificates = [\"www\"]\n\n      client_ca {{\n        {source}\n      }}\n    }}\n"
            ),
        )
    };
    let of_gateway = |what, text: String| kv(what, text).in_document("gateway");
    // The one that a listener shows comes from elsewhere now.
    let shown = |what, codes, source: &str| {
        let text = gateway(PKI, source);
        Case::new(what, text, codes, Stays::LastGoodOrWithoutIt)
            .in_document("gateway")
            .put_in_kv()
    };
    vec![
        shown(
            "a file named by a document from KV",
            &[NotAllowed, NotAllowed],
            "  file {\n    certificate = \"/etc/shadow\"\n    private_key = \"/etc/shadow\"\n  }\n",
        ),
        shown(
            "a Vault path that the settings do not list, from KV",
            &[NotAllowed],
            "  vault_kv {\n    mount = \"secret\"\n    path  = \"payroll\"\n  }\n",
        ),
        shown(
            "a PKI issuer that the settings do not list, from KV",
            &[NotAllowed],
            "  vault_pki {\n    mount       = \"pki\"\n    issuer      = \"root\"\n    role        = \"edge\"\n    common_name = \"shop.example.com\"\n  }\n",
        ),
        of_gateway(
            "authorities of clients at a Vault path that the settings do not list, from KV",
            clients("vault_pki { mount = \"pki\" }"),
        ),
        of_gateway(
            "an issuer of clients' certificates that the settings do not list, from KV",
            clients("vault_pki {\n          mount  = \"pki\"\n          issuer = \"2026\"\n        }"),
        ),
        bad(
            "authorities of clients in files, from KV",
            clients("file {\n          certificate = \"/etc/shadow\"\n          crl         = \"/etc/shadow\"\n        }"),
            &[NotAllowed, NotAllowed],
        )
        .in_document("gateway")
        .put_in_kv(),
        shown(
            "a Nomad variable that the settings do not list, from KV",
            &[NotAllowed],
            "  nomad_variable { path = \"nomad/jobs/payroll\" }\n",
        ),
        shown(
            "a Nomad variable that they list, of another namespace, from KV",
            &[NotAllowed],
            "  nomad_variable {\n    namespace = \"shop\"\n    path      = \"nomad/jobs/portreeve\"\n  }\n",
        ),
        Case::new(
            "a listener names a certificate from KV that the settings do not list",
            OTHERS,
            &[NotAllowed],
            Stays::ListenerWithoutIt,
        )
        .in_document("others")
        .put_in_kv()
        .then(|snapshot| {
            let text = gateway("[\"www\"]", "[\"www\", \"other\"]");
            world::put(snapshot, [world::file("gateway.hcl", &text)]);
        }),
        Case::new(
            "the same while only the listeners of another agent's gateway name it",
            and(OTHERS),
            &[],
            Stays::Everything,
        )
        .put_in_kv(),
        kv("a loopback address from KV", upstream("static { addresses = [\"127.0.0.1:8500\"] }")),
        kv("a loopback name from KV", upstream("dns { address = \"localhost:8500\" }")),
        kv("a loopback address in IPv6 clothes, from KV", upstream("static { addresses = [\"[::ffff:127.0.0.1]:80\"] }")),
        kv("a name that stands for this machine, from KV", upstream("dns { address = \"ip6-localhost:9901\" }")),
        kv("a cloud's metadata address from KV", upstream("static { addresses = [\"169.254.169.254:80\"] }")),
        kv("a cloud's metadata address in IPv6, from KV", upstream("static { addresses = [\"[fd00:ec2::254]:80\"] }")),
        kv("a cloud's metadata name from KV", upstream("dns { address = \"metadata.google.internal:80\" }")),
        kv("a host name that the settings do not list, from KV", upstream("dns { address = \"rebind.example.org:80\" }")),
        kv("an address where the agent itself listens, from KV", upstream("static { addresses = [\"10.0.0.5:7482\"] }")),
        of_gateway("a listener where the agent itself listens, from KV", listener(7482)),
        of_gateway("a listener where this machine's Consul listens, from KV", listener(8500)),
    ]
}
