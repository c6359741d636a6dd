#!/usr/bin/env bash
# The shipped system job on a real Nomad, with a real Consul (ACLs that deny by default) and OpenBao: what `portreeve
# setup` makes is all the rights there are. Needs root, `nomad` and `python3` on PATH, and what `make setup` fetches.
# Everything listens on loopback and lies in one directory under /tmp, which is removed. It is not part of `make test`:
# Nomad is not packaged where these run.
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
export PATH="$PWD/target/tools/bin:$PATH"
PORTREEVE=${PORTREEVE:-$PWD/target/debug/portreeve}
DIR=$(mktemp -d /tmp/prn.XXXXXX)
BASE=${BASE:-21000}
HTTP=$((BASE + 80)) HTTPS=$((BASE + 443)) READY=$((BASE + 748))
CONSUL=$((BASE + 500)) VAULT=$((BASE + 200)) NOMAD=$((BASE + 646))
for name in "${!CONSUL_@}" "${!VAULT_@}" "${!BAO_@}" "${!NOMAD_@}"; do
    case $name in CONSUL | VAULT | NOMAD) ;; *) unset "$name" ;; esac
done
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY
export CONSUL_HTTP_ADDR=127.0.0.1:$CONSUL CONSUL_HTTP_TOKEN=00000000-0000-4000-8000-0000000000de
export BAO_ADDR=http://127.0.0.1:$VAULT VAULT_ADDR=http://127.0.0.1:$VAULT BAO_TOKEN=root VAULT_TOKEN=root
export NOMAD_ADDR=http://127.0.0.1:$NOMAD
pids=()

end() {
    local code=$?
    ((code == 0)) || { echo "FAILED in $DIR"; tail -n 15 "$DIR"/*.log || true; }
    nomad job stop -purge orders >/dev/null 2>&1 || true
    nomad job stop -purge portreeve >/dev/null 2>&1 || true
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    umount -q "$DIR"/nomad/alloc/*/*/secrets "$DIR"/nomad/alloc/*/*/private 2>/dev/null || true
    ((code == 0)) && rm -rf "$DIR"
    exit "$code"
}
trap end EXIT

step() { printf '\n== %s\n' "$*"; }
until_ok() { # what, command...
    local what=$1 _
    shift
    for _ in $(seq 240); do
        if "$@" >"$DIR/last" 2>&1; then return 0; fi
        sleep 0.5
    done
    echo "gave up waiting for $what:"
    cat "$DIR/last"
    return 1
}
ask() { curl -sS -m 5 -H "host: $1" "http://127.0.0.1:$HTTP/"; }
answers() { [[ $(ask "$1") == "$2" ]]; }
load_on() { python3 "$ROOT/tests/nomad/load.py" "$HTTP" "$1" & echo $! >"$DIR/load"; }
load_off() { local pid code=0; pid=$(cat "$DIR/load"); kill "$pid"; wait "$pid" || code=$?; return "$code"; }

step "versions"
consul version | sed -n 1p
bao version
nomad version | sed -n 1p
envoy --version | grep -o 'version:.*' || true

step "Consul with ACLs, OpenBao with a PKI"
key=initial_management
[[ $(consul version | sed -n 1p) == *v1.[0-9].* || $(consul version | sed -n 1p) == *v1.10.* ]] && key=master
cat >"$DIR/consul.json" <<JSON
{"server": true, "bootstrap_expect": 1, "node_name": "n1", "data_dir": "$DIR/consul", "bind_addr": "127.0.0.1",
 "client_addr": "127.0.0.1", "disable_update_check": true, "connect": {"enabled": true},
 "ports": {"http": $CONSUL, "server": $((BASE + 300)), "serf_lan": $((BASE + 301)), "serf_wan": -1, "dns": -1, "grpc": -1},
 "performance": {"raft_multiplier": 1},
 "acl": {"enabled": true, "default_policy": "deny", "tokens": {"$key": "$CONSUL_HTTP_TOKEN", "agent": "$CONSUL_HTTP_TOKEN"}}}
JSON
consul agent -config-file="$DIR/consul.json" >"$DIR/consul.log" 2>&1 & pids+=($!)
bao server -dev -dev-no-store-token -dev-root-token-id=root -dev-listen-address=127.0.0.1:$VAULT >"$DIR/bao.log" 2>&1 & pids+=($!)
until_ok "Consul" consul members
until_ok "OpenBao" bao status
bao secrets enable -path=pki_int pki >/dev/null
bao write pki_int/root/generate/internal common_name=test ttl=24h >/dev/null
bao write pki_int/roles/edge allowed_domains=example.com allow_subdomains=true allow_bare_domains=true max_ttl=24h >/dev/null

step "portreeve setup consul, vault"
jwks=-nomad-jwks-url=http://127.0.0.1:$NOMAD/.well-known/jwks.json
cat >"$DIR/nomad.hcl" <<HCL
data_dir             = "$DIR/nomad"
name                 = "n1"
bind_addr            = "127.0.0.1"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = $NOMAD
  rpc  = $((BASE + 647))
  serf = $((BASE + 648))
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled           = true
  network_interface = "lo"
  max_kill_timeout  = "40s"
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
acl {
  enabled = true
}
consul {
  address             = "127.0.0.1:$CONSUL"
  token               = "$CONSUL_HTTP_TOKEN"
  service_auth_method = "nomad-services"
  task_auth_method    = "nomad-tasks"
  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}
HCL
# Raw_exec tasks inherit the agent's environment, and must find Nomad by their own identity.
start_nomad() { env -u NOMAD_ADDR -u NOMAD_TOKEN -u CONSUL_HTTP_ADDR -u VAULT_ADDR -u VAULT_TOKEN nomad agent -config="$DIR/nomad.hcl" >>"$DIR/nomad.log" 2>&1 & nomad_pid=$!; pids+=("$nomad_pid"); }
start_nomad
until_ok "Nomad" curl -fsS "$NOMAD_ADDR/v1/status/leader"
until_ok "Nomad's keys" curl -fsS "$NOMAD_ADDR/.well-known/jwks.json"
until_ok "a leader" bash -c "nomad acl bootstrap -json >$DIR/bootstrap"
NOMAD_TOKEN=$(python3 -c "import json; print(json.load(open('$DIR/bootstrap'))['SecretID'])")
export NOMAD_TOKEN
"$PORTREEVE" setup consul "$jwks" -dry-run | grep -v '^$' | grep -E '^[+~=]|to do'
"$PORTREEVE" setup consul "$jwks" >/dev/null
"$PORTREEVE" setup consul "$jwks" | grep -E 'Nothing'
"$PORTREEVE" setup vault "$jwks"
"$PORTREEVE" setup vault "$jwks" | grep -E 'Nothing'
"$PORTREEVE" setup nomad
"$PORTREEVE" setup nomad | grep -E 'Nothing'

step "the document, and the shipped system job"
consul kv put portreeve/config/edge - >/dev/null <<HCL
gateway "edge" {
  listener "http" {
    port = $HTTP
  }

  listener "https" {
    port     = $HTTPS
    protocol = "https"
    tls {
      certificates = ["www"]
    }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "native.example.com"
    ttl         = "12h"
  }
}

http_route "native" {
  gateways  = ["edge"]
  hostnames = ["native.example.com"]

  rule "all" {
    retry {
      attempts = 2
      on       = ["connect-failure"]
    }
    backend "upstream" "native" {}
  }
}

upstream "native" {
  nomad {
    service = "orders-native"
  }

  health_check {
    path     = "/"
    interval = "1s"
  }
}
HCL
cat >"$DIR/more.hcl" <<'HCL'
catalog {
  hostnames = ["*.apps.example.com"]
}

nomad {}
HCL
gateway() {
    nomad job run -detach=false -var driver=raw_exec -var user=root -var data_dir="$DIR/gw" -var portreeve="$PORTREEVE" \
        -var envoy="$(command -v envoy)" -var http_port=$HTTP -var https_port=$HTTPS -var ready_port=$READY \
        -var consul_address=127.0.0.1:$CONSUL -var vault_address="$VAULT_ADDR" -var drain_seconds=3 \
        -var more_settings="$(cat "$DIR/more.hcl")" "$@" nomad/portreeve.nomad.hcl >"$DIR/job.out" 2>&1 ||
        { cat "$DIR/job.out"; return 1; }
}
mkdir -p "$DIR/gw"
until_ok "a ready client" bash -c "nomad node status | grep -q ready"
gateway
until_ok "the gateway" curl -fsS "http://127.0.0.1:$READY/ready"
echo "ready, with workload identity alone"

step "a service deployed, exposed by its tags, and one in Nomad's own catalog"
orders() { nomad job run -var release="$1" -var server="$ROOT/tests/nomad/server.py" tests/nomad/orders.nomad.hcl >"$DIR/job.out" 2>&1 || { cat "$DIR/job.out"; return 1; }; }
orders 1
until_ok "the tagged service" answers orders.apps.example.com "release 1"
until_ok "the native service" answers native.example.com "release 1"
curl -sS -k --connect-to "::127.0.0.1:$HTTPS" https://native.example.com/
echo "orders.apps.example.com: $(ask orders.apps.example.com)"

for host in orders.apps.example.com native.example.com; do
    step "rolled to a new release under load: $host"
    load_on "$host"
    sleep 2
    orders "2-$host"
    until_ok "the new release" answers "$host" "release 2-$host"
    sleep 8
    load_off
done

step "Nomad's agent killed and started again under load"
load_on orders.apps.example.com
kill -9 "$nomad_pid"
sleep 3
start_nomad
until_ok "Nomad again" curl -fsS "$NOMAD_ADDR/v1/status/leader"
sleep 5
orders 3
until_ok "a release after that" answers orders.apps.example.com "release 3"
load_off

step "the gateway updated (the node has each port once, so a gap is expected)"
load_on orders.apps.example.com
gateway -var drain_seconds=4
until_ok "the gateway again" answers orders.apps.example.com "release 3"
load_off || true

step "done"
