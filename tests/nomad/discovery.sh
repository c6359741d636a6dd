# Nomad's own catalog over TLS, from a Nomad that asks for client certificates: a service in two namespaces and a token that may
# see one of them, then both; instances that come and go; and more services than connections, with and without the event
# stream. A single agent that is not a job. Sourced by run.sh, whose words it speaks.
# shellcheck shell=bash disable=SC2154

SECURE=$((BASE + 846)) EDGE=$((BASE + 180))
at=$DIR/discovery
mkdir -p "$at/agent"

secure() {
    NOMAD_ADDR=https://127.0.0.1:$SECURE NOMAD_CACERT=$at/nomad-agent-ca.pem NOMAD_CLIENT_CERT=$at/global-cli-nomad.pem \
        NOMAD_CLIENT_KEY=$at/global-cli-nomad-key.pem NOMAD_TOKEN=${secure_token:-} nomad "$@"
}
securely() { # a path of its API
    curl -sS -m 5 --cacert "$at/nomad-agent-ca.pem" --cert "$at/global-cli-nomad.pem" --key "$at/global-cli-nomad-key.pem" \
        -H "X-Nomad-Token: ${secure_token:-}" "https://127.0.0.1:$SECURE$1"
}
policy() { # name, rules: and a token that has it, beside the files
    secure acl policy apply "$1" - <<<"$2" >/dev/null
    secure acl token create -type=client -policy="$1" -json | field 'it["SecretID"]' >"$at/$1.token"
}
token() { # the agent's, from now on
    cp "$at/$1.token" "$at/next"
    mv "$at/next" "$at/token"
}
stock() { # namespace, release, more
    secure job run -detach -var namespace="$1" -var release="$2" -var server="$DIR/server.py" "${@:3}" \
        tests/nomad/stock.nomad.hcl >"$DIR/job.out" 2>&1
}
edge() { curl -sS -m 5 -H "host: $1.example.com" "http://127.0.0.1:$EDGE/"; }
says() { [[ $(edge "$1") == "release $2" ]]; }
told_of() { "$PORTREEVE" status -api-socket="$at/state/api.sock" >"$DIR/status.out" && grep -F "$1" "$DIR/status.out"; }
told() { # of the first problem of these words: what it is and what to do
    told_of "]: $1" >/dev/null
    sed -nE "/^(error|warning).*\\]: $1/,/^\$/p" "$DIR/status.out" | sed -nE '/^(error|warning)|= help/p' | sed -n 1,2p | tr -s ' '
}
agent() { # settings of `nomad` beside the address
    cat >"$at/agent/settings.hcl" <<HCL
gateways  = ["edge"]
node_name = "tls"

nomad {
  address    = "https://127.0.0.1:$SECURE"
  ca_file    = "$at/nomad-agent-ca.pem"
  token_file = "$at/token"
$1
}
HCL
    start discovery env -u NOMAD_ADDR -u NOMAD_TOKEN "$PORTREEVE" agent -dev -config="$at/agent" -data-dir="$at/state"
}
no_agent() {
    kill "${pid[discovery]}"
    until_ok "the end of the agent" bash -c "! kill -0 ${pid[discovery]}"
}
route() { # name, body of its upstream's nomad block
    cat <<HCL
http_route "$1" {
  gateways  = ["edge"]
  hostnames = ["$1.example.com"]

  rule "all" {
    backend "upstream" "$1" {}
  }
}

upstream "$1" {
  nomad {
$2
  }
}

HCL
}
now() { date +%s%3N; }

step "Nomad over TLS, with client certificates and ACLs, and a service in two of its three namespaces"
(
    cd "$at"
    nomad tls ca create
    for kind in server cli; do nomad tls cert create -$kind; done
) >"$DIR/certificates.out" 2>&1
cat >"$at/nomad.hcl" <<HCL
data_dir             = "$DIR/nomad-tls"
name                 = "tls"
bind_addr            = "127.0.0.1"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = $SECURE
  rpc  = $((SECURE + 1))
  serf = $((SECURE + 2))
}
acl {
  enabled = true
}
tls {
  http                   = true
  rpc                    = true
  ca_file                = "$at/nomad-agent-ca.pem"
  cert_file              = "$at/global-server-nomad.pem"
  key_file               = "$at/global-server-nomad-key.pem"
  verify_server_hostname = true
  verify_https_client    = true
}
# A Nomad for itself.
consul {
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled           = true
  network_interface = "lo"
  min_dynamic_port  = $((BASE + 4500))
  max_dynamic_port  = $((BASE + 4999))
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
HCL
start nomad-tls env -u NOMAD_ADDR -u NOMAD_TOKEN nomad agent -config="$at/nomad.hcl"
bootstrap() { secure acl bootstrap -json >"$at/bootstrap.json"; }
until_ok "a leader" bootstrap
secure_token=$(field 'it["SecretID"]' <"$at/bootstrap.json")
ready_tls() { secure node status | grep -w ready; }
until_ok "a ready client" ready_tls
for namespace in shop elsewhere; do secure namespace apply "$namespace" >/dev/null; done
policy one 'namespace "shop" { capabilities = ["read-job"] }'
policy two 'namespace "shop" { capabilities = ["read-job"] }
namespace "default" { capabilities = ["read-job"] }'
policy every 'namespace "*" { capabilities = ["read-job"] }'
for namespace in default shop; do stock "$namespace" "$namespace-\${NOMAD_ALLOC_INDEX}"; done
plain=$(curl -sS -m 5 --cacert "$at/nomad-agent-ca.pem" "https://127.0.0.1:$SECURE/v1/status/leader" 2>&1 || true)
echo "curl, without a client certificate: $(grep -o 'alert.*required' <<<"$plain")"

step "an agent without a client certificate, then with one and a token for the namespace shop alone"
{
    printf 'gateway "edge" {\n  listener "http" {\n    port = %s\n  }\n}\n\n' "$EDGE"
    route any '    service   = "stock"
    namespace = "*"'
    for namespace in default shop; do route "$namespace" "    service   = \"stock\"
    namespace = \"$namespace\""; done
} >"$at/agent/edge.hcl"
token one
agent ''
until_ok "the missing certificate" told_of 'error[source-problem]: Nomad at'
told 'Nomad at'
no_agent
agent "  client_cert = \"$at/global-cli-nomad.pem\"
  client_key  = \"$at/global-cli-nomad-key.pem\""
until_ok "the namespace shop" says shop shop-0
until_ok "what it may see of all" says any shop-0
until_ok "the refusal" told_of 'with 403'
for _ in $(seq 20); do says any shop-0; done
echo "shop: $(edge shop), any, 20 times: $(edge any)"
told 'Nomad at'

step "a token for every namespace put into its file: the wildcard finds both"
token every
until_ok "the namespace default" says default default-0
several() { for _ in $(seq 20); do edge any; done | sed "s/release //" | sort -u | tr "\n" " "; }
finds() { [[ $(several) == "$1" ]]; }
until_ok "both" finds "default-0 shop-0 "
echo "any, 20 times: $(several)"

step "an instance added, and the other namespace's one stopped, under load"
python3 "$ROOT/tests/nomad/load.py" 50 - 127.0.0.1 "$EDGE" any.example.com default.example.com >"$DIR/load.out" 2>&1 &
load=$!
listed() { [[ $(securely "/v1/service/stock?namespace=$1" | grep -o AllocID | wc -l) == "$2" ]]; }
when() { # command...: the milliseconds when it was so
    local _
    for _ in $(seq 2400); do
        if "$@"; then
            now
            return
        fi
        sleep 0.025
    done
    return 1
}
stock default "default-\${NOMAD_ALLOC_INDEX}" -var count=2
from=$(when listed default 2)
until=$(when says default default-1)
echo "the added one answered $((until - from)) ms after Nomad listed it"
until_ok "all three" finds "default-0 default-1 shop-0 "
secure job stop -detach -namespace=shop stock >/dev/null
from=$(when listed shop 0)
until=$(when finds "default-0 default-1 ")
echo "any, 20 times, had none of shop $((until - from)) ms after Nomad listed none"
sleep 4
load_off

step "95 more upstreams, more than the connections that Nomad grants one client"
many() { stock default "$1" -var name=many -var services=90; }
stock shop 1 -var name=zone -var services=5
many 1
token two
{
    for number in $(seq 0 89); do route "m$number" "    service = \"many-$number\""; done
    for number in $(seq 0 4); do route "z$number" "    service   = \"zone-$number\"
    namespace = \"shop\""; done
} >"$at/agent/many.hcl"
followed() { python3 "$ROOT/tests/nomad/prompt.py" "$EDGE" "release $1" 90 'm{}.example.com'; }
until_ok "all of them" followed 1
told 'more services are watched'
connections() { ss -Htnp state established "dport = :$SECURE" | grep -c "pid=${pid[discovery]},"; }
grep -c 'Too many concurrent connections' "$DIR/nomad-tls.log" >"$DIR/last.out" && { echo "Nomad refused connections"; exit 1; }
echo "its connections to Nomad: $(connections), none refused; HTTP/2: $(openssl s_client -alpn h2 -connect "127.0.0.1:$SECURE" \
    -cert "$at/global-cli-nomad.pem" -key "$at/global-cli-nomad-key.pem" </dev/null 2>/dev/null | grep -i alpn)"
many 2
echo "release 2, as the event stream names it: $(followed 2)"
token every
until_ok "the other token" bash -c "grep 'token read again' '$DIR/discovery.log' | wc -l | grep -x 3"
many 3
echo "release 3, after another token: $(followed 3)"

no_agent
for job in many:default stock:default zone:shop; do
    secure job stop -namespace="${job#*:}" "${job%:*}" >/dev/null 2>&1
done
