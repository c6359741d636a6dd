//! The guides that one machine can follow from beginning to end, each with what it says it starts from.

use super::guide::Guide;

/// A Consul, without ACLs.
macro_rules! consul {
    () => {
        "export CONSUL_HTTP_ADDR=127.0.0.1:8500
consul agent -dev -log-level=warn -config-file=ports.hcl > consul.log 2>&1 &
until consul kv put begun yes > /dev/null 2>&1; do sleep 0.2; done
"
    };
}

/// A Vault, with an operator's token in the shell.
macro_rules! vault {
    () => {
        "export VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=root
vault server -dev -dev-root-token-id=root -dev-listen-address=127.0.0.1:8200 > vault.log 2>&1 &
until vault status > /dev/null 2>&1; do sleep 0.2; done
"
    };
}

/// An agent of the gateway `edge` that reads documents from that Consul.
macro_rules! agent {
    ($more:literal) => {
        concat!(
            "cat > agent.hcl <<'END'
gateways  = [\"edge\"]
node_name = \"edge-1\"
bind_addr = \"127.0.0.1\"
consul { address = \"127.0.0.1:8500\" }
envoy {
  supervise  = true
  drain_time = \"1s\"
}
",
            $more,
            "END
portreeve agent -config=agent.hcl -data-dir=\"$PWD/data\" > agent.log 2>&1 &
export PORTREEVE_API_SOCKET=$PWD/data/api.sock
"
        )
    };
}

#[test]
fn the_mesh_guide_works_as_it_is_written() {
    Guide {
        page: "mesh-ingress.md",
        before: "",
        after: "",
        steps: 14,
        shown: 7,
    }
    .play();
}

#[test]
fn the_first_guide_works_as_it_is_written() {
    Guide {
        page: "expose-a-consul-service.md",
        before: concat!(consul!(), agent!("")),
        after: "",
        steps: 4,
        shown: 2,
    }
    .play();
}

#[test]
fn the_canary_guide_works_as_it_is_written() {
    Guide {
        page: "canary.md",
        before: concat!(
            consul!(),
            agent!(""),
            "for version in now next; do mkdir $version; echo $version > $version/version; done
python3 -m http.server 9000 --bind 127.0.0.1 --directory now > now.log 2>&1 &
python3 -m http.server 9001 --bind 127.0.0.1 --directory next > next.log 2>&1 &
consul services register -name=orders -address=127.0.0.1 -port=9000
consul services register -name=orders-next -address=127.0.0.1 -port=9001
consul kv put portreeve/config/edge 'gateway \"edge\" {
  listener \"web\" { port = 8080 }
}'
"
        ),
        // Some of either kind: the chance of a wrong failure is one in 1.4 thousand million.
        after: "for request in $(seq 200); do
    curl -sS --fail --connect-to ::127.0.0.1:8080 http://orders.example.com/version
done | sort | uniq -c | awk '{ print } END { exit NR != 2 }'
",
        steps: 2,
        shown: 1,
    }
    .play();
}

#[test]
fn the_redirect_guide_works_as_it_is_written() {
    Guide {
        page: "redirect-to-https.md",
        before: concat!(
            consul!(),
            vault!(),
            "vault secrets enable -path=pki_int -max-lease-ttl=87600h pki
vault write -field=certificate pki_int/root/generate/internal common_name='Example CA' ttl=87600h > ca.pem
vault write pki_int/roles/edge allowed_domains=example.com allow_subdomains=true max_ttl=72h key_type=any
vault token create -field=token > vault_token
",
            agent!(
                "vault {
  address    = \"http://127.0.0.1:8200\"
  token_file = \"vault_token\"
}
kv_documents { vault_paths = [\"pki_int/sign/edge\"] }
"
            ),
            "echo www > a
python3 -m http.server 9000 --bind 127.0.0.1 > www.log 2>&1 &
consul services register -name=www -address=127.0.0.1 -port=9000
"
        ),
        after: "test \"$(curl -sSL --fail --retry 10 --retry-connrefused --cacert ca.pem \\
    --connect-to ::127.0.0.1: http://www.example.com:8080/a)\" = www
",
        steps: 1,
        shown: 1,
    }
    .play();
}

#[test]
fn the_tcp_guide_works_as_it_is_written() {
    Guide {
        page: "tcp.md",
        before: concat!(
            consul!(),
            agent!(""),
            "echo rows > rows
python3 -m http.server 9000 --bind 127.0.0.1 > postgres.log 2>&1 &
consul services register -name=postgres -address=127.0.0.1 -port=9000
"
        ),
        after: "test \"$(curl -sS --fail --retry 10 --retry-all-errors http://127.0.0.1:5432/rows)\" = rows
",
        steps: 2,
        shown: 1,
    }
    .play();
}

#[test]
fn the_guide_to_documents_in_kv_works_as_it_is_written() {
    Guide {
        page: "documents-in-kv.md",
        before: consul!(),
        after: "",
        steps: 1,
        shown: 1,
    }
    .play();
}

#[test]
fn the_guide_to_tls_from_vault_works_as_it_is_written() {
    Guide {
        page: "tls-from-vault.md",
        before: vault!(),
        after: "",
        steps: 6,
        shown: 2,
    }
    .play();
}
