#!/usr/bin/env bash
# Runs a gateway under Nomad on this machine: Consul with ACLs that deny by default, OpenBao (or Vault), a Nomad of one node.
# `portreeve setup` makes the rights, the shipped system job comes up with workload identities alone, a service is deployed,
# exposed by its tags, and rolled to a new version while requests run. Stays up until Ctrl-C. Called by `make demo-nomad`,
# which builds first. Needs `nomad` 1.11.3 or newer on PATH.
#
#   CI=true, DEMO_PORT_BASE=16000, DEMO_DIR=target/demo-nomad, DEMO_PORTREEVE: as for tests/demo.sh
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

SHOWN=${DEMO_DIR:-target/demo-nomad} # as it is printed
PORTREEVE=${DEMO_PORTREEVE:-${CARGO_TARGET_DIR:-$PWD/target}/debug/portreeve}
BASE=${DEMO_PORT_BASE:-16000}
HOST=orders.apps.example.com

if ! [[ $BASE =~ ^[0-9]{4,5}$ ]] || ((BASE < 1024 || BASE > 64000)); then
    echo "demo: DEMO_PORT_BASE=$BASE is not a number from 1024 to 64000" >&2
    exit 2
fi
if ! command -v nomad >/dev/null; then
    cat >&2 <<'TEXT'
demo: nomad is not on PATH, and unlike the other programs it cannot be fetched for you.
      Get version 1.11.3 or newer from https://developer.hashicorp.com/nomad/install (packages for Debian, Fedora and
      others, Homebrew, or a zip with the one program in it), put it on PATH, and run `make demo-nomad` again.
      `make demo` shows the same gateway without Nomad.
TEXT
    exit 3
fi
declare -A PORT=(
    [http]=$((BASE + 80)) [https]=$((BASE + 443)) [ready]=$((BASE + 748))
    [consul]=$((BASE + 500)) [consul_server]=$((BASE + 300)) [consul_serf]=$((BASE + 301))
    [vault]=$((BASE + 200)) [vault_cluster]=$((BASE + 201))
    [nomad]=$((BASE + 646)) [nomad_rpc]=$((BASE + 647)) [nomad_serf]=$((BASE + 648))
)
TARGET=demo-nomad
# shellcheck source=tests/demo-parts.sh
source tests/demo-parts.sh

vault=$(command -v bao || command -v vault || true)
[[ -n $vault ]] || die "neither bao nor vault is there: run \`make setup\`"
export VAULT_ADDR=http://127.0.0.1:${PORT[vault]} BAO_ADDR=http://127.0.0.1:${PORT[vault]} VAULT_TOKEN=root BAO_TOKEN=root
export NOMAD_ADDR=http://127.0.0.1:${PORT[nomad]}

# Sockets in allocations have long paths, and at most 107 bytes.
[[ -n $own_run ]] || own_run=$(mktemp -d /tmp/portreeve-demo.XXXXXX)
RUN=$own_run/gateway
mkdir -p "$RUN"

# ---- The end: a Nomad that ends leaves its tasks running, so they end first -------------------------------------------

tasks_run() { pgrep -f "nomad executor .*$own_run/"; }

finish_nomad() {
    local code=$? _
    trap '' INT TERM HUP
    trap - EXIT ERR
    set +e
    if is_running nomad; then
        exec 1>&8
        echo
        say "stopping the jobs, which lets Envoy drain"
        for name in orders portreeve; do timeout 60 nomad job stop "$name" >/dev/null 2>&1; done
        for _ in $(seq 60); do
            tasks_run >/dev/null || break
            sleep 0.5
        done
    fi
    stop nomad 10
    # Whatever is left runs with a file of this directory, or writes to one.
    for left in $(pgrep -f "$own_run/") $(pgrep -f "nomad logmon"); do
        if tr '\0' ' ' <"/proc/$left/cmdline" | grep -qF "$own_run/" ||
            readlink "/proc/$left"/fd/* | grep -qF "$own_run/"; then
            kill -KILL "$left"
        fi
    done 2>/dev/null
    umount -q "$own_run"/nomad/alloc/*/*/secrets "$own_run"/nomad/alloc/*/*/private 2>/dev/null
    (exit "$code")
    finish
}
trap finish_nomad EXIT

# ---- Servers -------------------------------------------------------------------------------------------------------------

start_vault() {
    say "starting $("$vault" version | cut -d ' ' -f 1,2) on $VAULT_ADDR, in memory"
    start vault "$vault" server -dev -dev-no-store-token -dev-root-token-id=root \
        "-dev-listen-address=127.0.0.1:${PORT[vault]}"
}

set_up_vault() {
    "$vault" secrets enable -path=pki_int pki
    "$vault" write -field=certificate pki_int/root/generate/internal common_name="Portreeve demo root" key_type=ec \
        key_bits=256 ttl=24h >"$DEMO/ca.pem"
    "$vault" write pki_int/roles/edge allowed_domains=example.com allow_subdomains=true key_type=ec key_bits=256 \
        max_ttl=24h no_store=true
}

start_nomad() {
    say "starting $(nomad version | sed -n 1p) on $NOMAD_ADDR, with ACLs, a server and a client in one"
    cat >"$DEMO/nomad.hcl" <<HCL
data_dir             = "$own_run/nomad"
name                 = "demo"
bind_addr            = "127.0.0.1"
disable_update_check = true
log_level            = "warn"

advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

ports {
  http = ${PORT[nomad]}
  rpc  = ${PORT[nomad_rpc]}
  serf = ${PORT[nomad_serf]}
}

server {
  enabled          = true
  bootstrap_expect = 1
}

client {
  enabled           = true
  network_interface = "lo"
  min_dynamic_port  = $((BASE + 800))
  max_dynamic_port  = $((BASE + 899))

  # This machine is in no cloud, and need not ask.
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

# By this Nomad registers services. The gateway's agent logs in by itself.
consul {
  address             = "$CONSUL_HTTP_ADDR"
  token               = "$CONSUL_HTTP_TOKEN"
  service_auth_method = "nomad-services"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}
HCL
    # Tasks under raw_exec inherit this environment: without the tokens of this script.
    start nomad env -u NOMAD_ADDR -u CONSUL_HTTP_ADDR -u CONSUL_HTTP_TOKEN -u VAULT_ADDR -u VAULT_TOKEN -u BAO_ADDR \
        -u BAO_TOKEN nomad agent -config="$DEMO/nomad.hcl"
}

nomad_leads() {
    curl -fsS "$NOMAD_ADDR/.well-known/jwks.json" && (umask 077 && nomad acl bootstrap -json >"$DEMO/nomad-bootstrap.json")
}
node_is_ready() { nomad node status | grep -qw ready; }

# setup PRODUCT ARGUMENTS...: a dry run says how much there is to do, the run what it did, and a second one must find nothing.
setup() {
    local status=wrong
    echo "    \$ portreeve setup $* -dry-run"
    "$PORTREEVE" setup "$@" -dry-run >"$DEMO/setup.out" || die "$(<"$DEMO/setup.out")"
    grep -F ' to do at ' "$DEMO/setup.out" | sed 's/^/    /'
    echo "    \$ portreeve setup $*"
    "$PORTREEVE" setup "$@" >"$DEMO/setup.out" || die "$(<"$DEMO/setup.out")"
    grep -E '^[+~=]| done at ' "$DEMO/setup.out" | sed 's/^/    /'
    "$PORTREEVE" setup "$@" >"$DEMO/setup.out" || die "$(<"$DEMO/setup.out")"
    if grep -q 'Nothing to do' "$DEMO/setup.out"; then status=ok; fi
    verdict "$status" "a second run finds nothing to do"
}

rights() {
    local keys=-nomad-jwks-url=$NOMAD_ADDR/.well-known/jwks.json
    title "The rights: policies, roles, auth methods, and what binds them to the job and to nobody else"
    setup consul "$keys"
    setup vault "$keys"
    setup nomad
}

# ---- The gateway ---------------------------------------------------------------------------------------------------------

write_documents() {
    cat >"$DEMO/documents/edge.hcl" <<HCL
gateway "edge" {
  listener "http" {
    port = ${PORT[http]}
  }

  listener "https" {
    port     = ${PORT[https]}
    protocol = "https"
    tls {
      certificates = ["apps"]
    }
  }
}

certificate "apps" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "$HOST"
    ttl         = "12h"
  }
}
HCL
    cat >"$DEMO/documents/more-settings.hcl" <<'HCL'
# Services may expose themselves by tags, under these names.
catalog {
  hostnames = ["*.apps.example.com"]
}
HCL
}

gateway() {
    title "The gateway: the shipped system job, with workload identities alone"
    consul kv put portreeve/config/edge "@$DEMO/documents/edge.hcl" >/dev/null || die "Consul did not take the document"
    echo "    \$ consul kv put portreeve/config/edge @$SHOWN/documents/edge.hcl"
    echo "    \$ nomad job run -var driver=raw_exec -var ... nomad/portreeve.nomad.hcl"
    nomad job run -var driver=raw_exec -var user= -var data_dir="$RUN" -var portreeve="$PORTREEVE" \
        -var envoy="$(command -v envoy)" -var bind_address=127.0.0.1 -var http_port="${PORT[http]}" \
        -var https_port="${PORT[https]}" -var ready_port="${PORT[ready]}" -var consul_address="$CONSUL_HTTP_ADDR" \
        -var vault_address="$VAULT_ADDR" -var drain_seconds=2 \
        -var more_settings="$(<"$DEMO/documents/more-settings.hcl")" \
        nomad/portreeve.nomad.hcl >"$DEMO/gateway-job.out" 2>&1 || die "$(tail -n 40 "$DEMO/gateway-job.out")"
    grep -E 'Status += successful' "$DEMO/gateway-job.out" | tail -n 1 | sed 's/^ */    Deployment: /'
    wait_for "the gateway to be ready" 60 nomad curl -fsS "http://127.0.0.1:${PORT[ready]}/ready"
    verdict ok "the deployment is successful: the agent has published, Envoy listens"
}

# ---- Asking and checking ---------------------------------------------------------------------------------------------

at_http=(--resolve "$HOST:${PORT[http]}:127.0.0.1")
http=http://$HOST:${PORT[http]}

orders() {
    echo "    \$ nomad job run -var release=$1 -var ... tests/nomad/orders.nomad.hcl"
    nomad job run -var release="$1" -var server="$own_run/server.py" tests/nomad/orders.nomad.hcl \
        >"$DEMO/orders-job.out" 2>&1 || die "$(tail -n 40 "$DEMO/orders-job.out")"
}
all_answer() {
    local _
    for _ in 1 2 3 4 5 6 7 8; do
        [[ $(curl -s --max-time 5 "${at_http[@]}" "$http/") == "release $1" ]] || return 1
    done
}

deploy() {
    title "A service is deployed. No document names it: its tags do"
    grep -m 1 'tags  ' tests/nomad/orders.nomad.hcl | sed 's/^ */    /'
    orders 1
    wait_for "the service" 60 nomad all_answer 1
    ask "It is reachable" \
        "200 from release 1" \
        '^HTTP/1.1 200 .*release 1' \
        -i "${at_http[@]}" "$http/"
    ask "And over HTTPS, with a certificate that the agent had signed for its own key, by a login with its identity" \
        "200 over HTTP/2, the certificate verified" \
        '^HTTP/2 200 .*release 1 .*verified: 0' \
        -i -w 'certificate verified: %{ssl_verify_result} (0 is yes)\n' --resolve "$HOST:${PORT[https]}:127.0.0.1" \
        --cacert "$DEMO/ca.pem" "https://$HOST:${PORT[https]}/"
}

# under_load EXPECTATION COMMAND...: 50 requests a second while it runs.
under_load() {
    local expectation=$1 status=ok load
    shift
    python3 tests/nomad/load.py 50 "$CONSUL_HTTP_ADDR" portreeve-edge "${PORT[http]}" "$HOST" >"$DEMO/load.out" 2>&1 8>&- 9>&- &
    load=$!
    sleep 1
    "$@"
    kill "$load"
    wait "$load" || status=wrong
    sed 's/^/    /' "$DEMO/load.out"
    verdict "$status" "$expectation"
}

roll() {
    orders 2
    wait_for "the new release alone" 60 nomad all_answer 2
    sleep 3
}

kill_agent() {
    local alloc
    alloc=$(nomad job allocs -json portreeve | field 0 ID)
    echo "    \$ nomad alloc signal -s SIGKILL -task agent ${alloc:0:8}"
    nomad alloc signal -s SIGKILL -task agent "$alloc" >/dev/null
    orders 3
    wait_for "the release after that" 60 nomad all_answer 3
    sleep 3
}

what_next() {
    title "The gateway stays up until Ctrl-C. Try, in another shell:"
    cat <<TEXT
    export NOMAD_ADDR=$NOMAD_ADDR NOMAD_TOKEN=$NOMAD_TOKEN
    export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_HTTP_TOKEN=$CONSUL_HTTP_TOKEN
    export PATH="$PWD/target/tools/bin:$(dirname "$PORTREEVE"):\$PATH" PORTREEVE_API_SOCKET=$RUN/api.sock
    nomad job status portreeve
    portreeve status
    portreeve explain GET $http/
    nomad job run -var release=4 -var server=$own_run/server.py tests/nomad/orders.nomad.hcl
    nomad alloc logs -task agent -job portreeve
TEXT
}

# ---- The demo --------------------------------------------------------------------------------------------------------

cp tests/nomad/server.py "$own_run"
start_consul
start_vault
wait_for "Consul" 60 consul consul_leads
wait_for "Vault" 60 vault "$vault" status
set_up_vault >"$DEMO/vault-setup.log" 2>&1
start_nomad
wait_for "Nomad" 60 nomad nomad_leads
NOMAD_TOKEN=$(field SecretID <"$DEMO/nomad-bootstrap.json")
export NOMAD_TOKEN
wait_for "Nomad's node" 60 nomad node_is_ready
write_documents
rights
gateway
deploy
title "It is rolled to a new version, two new instances before two old ones end, under 50 requests a second"
under_load "no request fails" roll
title "Portreeve's agent is killed, and the service rolled once more while Nomad brings it back"
under_load "no request fails" kill_agent
finish_asking
what_next
stay consul vault nomad
