#!/usr/bin/env bash
# Runs a mesh ingress on this machine: Consul with ACLs that deny by default, two services with Consul's own proxy as their
# sidecar, the agent and its Envoy. Sends requests into the mesh, flips an intention and shows that it is explained, splits
# traffic by a config entry, and stays up until Ctrl-C. Called by `make demo-mesh`, which builds first.
#
#   CI=true, DEMO_PORT_BASE=19000, DEMO_LOG_LEVEL, DEMO_DIR=target/demo-mesh, DEMO_PORTREEVE: as for tests/demo.sh
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

SHOWN=${DEMO_DIR:-target/demo-mesh} # as it is printed
PORTREEVE=${DEMO_PORTREEVE:-${CARGO_TARGET_DIR:-$PWD/target}/debug/portreeve}
BASE=${DEMO_PORT_BASE:-19000}
HOST=pets.example.com

if ! [[ $BASE =~ ^[0-9]{4,5}$ ]] || ((BASE < 1024 || BASE > 64000)); then
    echo "demo: DEMO_PORT_BASE=$BASE is not a number from 1024 to 64000" >&2
    exit 2
fi
declare -A PORT=(
    [http]=$((BASE + 80)) [ready]=$((BASE + 748))
    [consul]=$((BASE + 500)) [consul_server]=$((BASE + 300)) [consul_serf]=$((BASE + 301))
    [petstore]=$((BASE + 901)) [petstore-next]=$((BASE + 902))
    [petstore-sidecar]=$((BASE + 911)) [petstore-next-sidecar]=$((BASE + 912))
)
TARGET=demo-mesh
# shellcheck source=tests/demo-parts.sh
source tests/demo-parts.sh

# ---- Consul: two tokens, each with exactly a shipped policy --------------------------------------------------------------

set_up_consul() {
    local token
    consul acl policy create -name portreeve -rules @docs/deploy/consul-acl-policy.hcl
    token=$(consul acl token create -description "the agent" -policy-name portreeve -format=json)
    (umask 077 && field SecretID <<<"$token" >"$DEMO/consul_token")
    consul acl policy create -name portreeve-mesh -rules @docs/deploy/consul-mesh-policy.hcl
    token=$(consul acl token create -description "the gateway in the mesh" -policy-name portreeve-mesh -format=json)
    (umask 077 && field SecretID <<<"$token" >"$DEMO/mesh_token")
}

# ---- Two services and their sidecars ---------------------------------------------------------------------------------

backend_answers() { curl -fsS "http://127.0.0.1:${PORT[$1]}/healthz"; }

start_service() {
    local name=$1
    say "starting $name on 127.0.0.1:${PORT[$name]}, and a sidecar of Consul's for it on 127.0.0.1:${PORT[$name-sidecar]}"
    start "$name" python3 "$DEMO/backend.py" "$name" "${PORT[$name]}"
    cat >"$DEMO/services/$name.json" <<JSON
{
  "service": {
    "name": "$name", "address": "127.0.0.1", "port": ${PORT[$name]},
    "check": { "http": "http://127.0.0.1:${PORT[$name]}/healthz", "interval": "2s", "timeout": "1s", "status": "passing" },
    "connect": { "sidecar_service": { "port": ${PORT[$name-sidecar]}, "checks": [
      { "name": "listening", "tcp": "127.0.0.1:${PORT[$name-sidecar]}", "interval": "1s" },
      { "name": "instance", "alias_service": "$name" }
    ] } }
  }
}
JSON
    wait_for "the service $name" 30 "$name" backend_answers "$name"
    consul services register "$DEMO/services/$name.json" >/dev/null || die "Consul did not take the service $name"
    start "$name-sidecar" consul connect proxy -sidecar-for "$name"
    consul_entry "service-defaults" "$name" '"Protocol": "http"'
}

# consul_entry KIND NAME FIELDS: a config entry.
consul_entry() {
    echo "{ \"Kind\": \"$1\", \"Name\": \"$2\", $3 }" >"$DEMO/services/$1-$2.json"
    consul config write "$DEMO/services/$1-$2.json" >/dev/null || die "Consul did not take the $1 of $2"
}

# intention allow|deny
intention() {
    echo "    \$ consul intention create -replace -$1 edge-gw petstore"
    consul intention create -replace "-$1" edge-gw petstore >"$DEMO/intention.out" 2>&1 ||
        die "Consul did not take the intention: $(<"$DEMO/intention.out")"
}

# ---- The agent -------------------------------------------------------------------------------------------------------

write_documents() {
    cat >"$DEMO/documents/edge.hcl" <<HCL
gateway "edge" {
  listener "web" {
    port = ${PORT[http]}
  }
}

upstream "petstore" {
  connect {}
}

http_route "pets" {
  gateways  = ["edge"]
  hostnames = ["$HOST"]

  rule "pets" {
    match { path_prefix = "/pets" }
    rewrite { path_prefix = "/" }

    backend "upstream" "petstore" {}
  }
}
HCL
}

start_agent() {
    cat >"$DEMO/agent.hcl" <<HCL
# The agent's settings in this demo.
gateways  = ["edge"]
node_name = "demo"
data_dir  = "$RUN"
bind_addr = "127.0.0.1"
log_level = "${DEMO_LOG_LEVEL:-info}"

kv_documents {
}

consul {
  address    = "$CONSUL_HTTP_ADDR"
  token_file = "$DEMO/consul_token"
}

# Who the gateway is in the mesh. This token can do nothing but be it.
mesh {
  service    = "edge-gw"
  token_file = "$DEMO/mesh_token"
}

envoy {
  supervise   = true
  concurrency = 1
  drain_time  = "1s"
}

api {
  address = "127.0.0.1:${PORT[ready]}"
}
HCL
    start agent env -u CONSUL_HTTP_ADDR -u CONSUL_HTTP_TOKEN "$PORTREEVE" agent -config "$DEMO/agent.hcl"
}

at_http=(--resolve "$HOST:${PORT[http]}:127.0.0.1")
http=http://$HOST:${PORT[http]}

is_ready() { curl -fsS "http://127.0.0.1:${PORT[ready]}/ready"; }
answers() { [[ $(curl -s --max-time 5 -o /dev/null -w '%{http_code}' "${at_http[@]}" "$http/pets/7") == "$1" ]]; }
portreeve() { PORTREEVE_API_SOCKET=$RUN/api.sock "$PORTREEVE" "$@"; }
explained() { portreeve explain GET "$http/pets/7" >"$DEMO/explain.out" && grep -qE "$1" "$DEMO/explain.out"; }
says() { portreeve status >"$DEMO/status.out" 2>&1 || true; grep -q "intention-denied" "$DEMO/status.out"; }

# shown EXPECTATION PATTERN: what `explain` says, once it says what is expected.
shown() {
    local begin=$SECONDS status=wrong
    echo "    \$ portreeve explain GET $http/pets/7"
    until explained "$2" || ((SECONDS - begin > 20)); do sleep 0.2; done
    sed 's/^/    /' "$DEMO/explain.out"
    if explained "$2"; then status=ok; fi
    verdict "$status" "$1"
}

requests() {
    title "Nobody allowed the gateway in yet, and the default is deny: said before anybody asks"
    shown "the verdict: denied by default" 'denied by default'

    title "An intention lets it in"
    intention allow
    wait_for "the mesh to let the gateway in" 30 agent answers 200
    ask "A request into the mesh: TLS on both sides, the SPIFFE id checked, the path rewritten" \
        "200 from petstore, asked for /7" \
        '^HTTP/1.1 200 .*petstore answers GET /7' \
        -i "${at_http[@]}" "$http/pets/7"

    title "The intention is flipped"
    intention deny
    shown "the verdict names the intention" 'denied by intention edge-gw => petstore \(deny'
    wait_for "status to say so" 30 agent says
    echo "    \$ portreeve status | grep -A 2 intention-denied"
    grep -m 1 -A 2 "intention-denied" "$DEMO/status.out" | sed 's/^/    /'
    verdict ok "status says so too"
    wait_for "the sidecar to refuse" 30 agent answers 503
    ask "And the sidecar refuses" \
        "503" \
        '^HTTP/1.1 503 ' \
        -i "${at_http[@]}" "$http/pets/7"

    title "And back"
    intention allow
    shown "the verdict: allowed" 'allowed by intention edge-gw => petstore'
    wait_for "the mesh to let the gateway in" 30 agent answers 200
}

split() {
    title "A config entry splits the service: half of the requests go to petstore-next"
    consul intention create -replace -allow edge-gw petstore-next >/dev/null 2>&1 || die "Consul did not take the intention"
    consul_entry service-splitter petstore \
        '"Splits": [{ "Weight": 50, "Service": "petstore" }, { "Weight": 50, "Service": "petstore-next" }]'
    echo "    \$ consul config write $SHOWN/services/service-splitter-petstore.json"
    local counts first next status=wrong begin=$SECONDS
    until [[ $(curl -s --max-time 5 "${at_http[@]}" "$http/pets/7") == petstore-next* ]] || ((SECONDS - begin > 20)); do :; done
    counts=$(curl -s --max-time 60 "${at_http[@]}" "$http/pets/[1-100]" | cut -d ' ' -f 1 | sort | uniq -c) || true
    sed 's/^/    /' <<<"$counts"
    first=$(awk '$2 == "petstore" {print $1}' <<<"$counts")
    next=$(awk '$2 == "petstore-next" {print $1}' <<<"$counts")
    # 50 and 50 are meant; 1 in 10^9 runs falls outside of these bounds.
    if [[ $((${first:-0} + ${next:-0})) == 100 && ${next:-0} -ge 20 && ${next:-0} -le 80 ]]; then status=ok; fi
    verdict "$status" "all 100 answered, about half of them by petstore-next"
}

what_next() {
    title "The gateway stays up until Ctrl-C. Try, in another shell:"
    cat <<TEXT
    export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_HTTP_TOKEN=$CONSUL_HTTP_TOKEN
    export PATH="$PWD/target/tools/bin:$(dirname "$PORTREEVE"):\$PATH" PORTREEVE_API_SOCKET=$RUN/api.sock
    consul intention create -replace -deny edge-gw petstore
    portreeve explain GET $http/pets/7
    curl -i ${at_http[*]} $http/pets/7
TEXT
}

# ---- The demo --------------------------------------------------------------------------------------------------------

start_consul
wait_for "Consul" 60 consul consul_leads
say "setting up Consul: the policies docs/deploy/consul-acl-policy.hcl and consul-mesh-policy.hcl, a token for each"
set_up_consul >"$DEMO/consul-setup.log" 2>&1
write_backend
for name in petstore petstore-next; do start_service "$name"; done
say "storing the document in Consul KV"
write_documents
echo "    \$ consul kv put portreeve/config/edge @$SHOWN/documents/edge.hcl"
consul kv put portreeve/config/edge "@$DEMO/documents/edge.hcl" >/dev/null || die "Consul did not take the document"
say "starting the agent, which starts Envoy"
start_agent
wait_for "the agent to be ready" 60 agent is_ready
requests
split
finish_asking
what_next
stay consul agent petstore-sidecar
