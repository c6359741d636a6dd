#!/usr/bin/env bash
# Runs a whole gateway on this machine: Consul, OpenBao (or Vault), two backends, the agent and its Envoy. Sends requests
# through it, shows and checks the answers, and stays up until Ctrl-C. Called by `make demo`, which builds first.
#
#   CI=true               stop after the last answer; exit code 0 only if every answer was right
#   DEMO_PORT_BASE=18000  all ports lie between this number and 999 above it
#   DEMO_LOG_LEVEL=info   of the agent
#   DEMO_DIR=target/demo  where its files lie
#   DEMO_PORTREEVE=...    another portreeve than target/debug/portreeve
#
# Everything it writes lies in DEMO_DIR (and, where that path is too long for a unix socket, in one directory under
# /tmp that it removes). Every port is bound to 127.0.0.1. Nothing is left running, however the script ends.
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

SHOWN=${DEMO_DIR:-target/demo} # as it is printed
PORTREEVE=${DEMO_PORTREEVE:-${CARGO_TARGET_DIR:-$PWD/target}/debug/portreeve}
BASE=${DEMO_PORT_BASE:-18000}
HOST=shop.example.com

if ! [[ $BASE =~ ^[0-9]{4,5}$ ]] || ((BASE < 1024 || BASE > 64000)); then
    echo "demo: DEMO_PORT_BASE=$BASE is not a number from 1024 to 64000" >&2
    exit 2
fi
declare -A PORT=(
    [http]=$((BASE + 80)) [https]=$((BASE + 443)) [ready]=$((BASE + 748))
    [consul]=$((BASE + 500)) [consul_server]=$((BASE + 300)) [consul_serf]=$((BASE + 301))
    [vault]=$((BASE + 200)) [vault_cluster]=$((BASE + 201))
    [orders]=$((BASE + 901)) [orders-next]=$((BASE + 902))
)
TARGET=demo
# shellcheck source=tests/demo-parts.sh
source tests/demo-parts.sh
export VAULT_ADDR=http://127.0.0.1:${PORT[vault]} BAO_ADDR=http://127.0.0.1:${PORT[vault]}
export VAULT_TOKEN='' BAO_TOKEN=''
vault=$(command -v bao || command -v vault || true)
vault_name=Vault
if [[ $vault == */bao ]]; then vault_name=OpenBao; fi
[[ -n $vault ]] || die "neither bao nor vault is there: run \`make setup\`"

# ---- Consul ----------------------------------------------------------------------------------------------------------

# Exactly the shipped policy, and a token that has nothing else.
set_up_consul() {
    local token
    consul acl policy create -name portreeve -rules @docs/deploy/consul-acl-policy.hcl
    token=$(consul acl token create -description "the agent" -policy-name portreeve -format=json)
    (umask 077 && field SecretID <<<"$token" >"$DEMO/consul_token")
}

# ---- OpenBao or Vault ------------------------------------------------------------------------------------------------

start_vault() {
    local memory=''
    if [[ $vault == */vault ]]; then memory='"disable_mlock": true,'; fi # OpenBao never locks memory
    say "starting $vault_name $(version_of "$vault") on $VAULT_ADDR"
    cat >"$DEMO/vault.json" <<JSON
{
  "storage": { "raft": { "path": "$DEMO/vault", "node_id": "demo", "performance_multiplier": "1" } },
  "listener": [{ "tcp": { "address": "127.0.0.1:${PORT[vault]}", "cluster_address": "127.0.0.1:${PORT[vault_cluster]}", "tls_disable": true } }],
  $memory "api_addr": "$VAULT_ADDR", "cluster_addr": "https://127.0.0.1:${PORT[vault_cluster]}", "log_level": "warn"
}
JSON
    start vault "$vault" server -config="$DEMO/vault.json"
}

# `status` answers 2 for a server that is there and sealed, 0 for one that is ready.
vault_listens() { "$vault" status >/dev/null; [[ $? == [02] ]]; }
vault_leads() { "$vault" status && [[ $(curl -s -o /dev/null -w '%{http_code}' "$VAULT_ADDR/v1/sys/health") == 200 ]]; }

# A root, an intermediate below it at pki_int with a role `edge`, exactly the shipped policy, and an AppRole that has
# nothing else.
set_up_vault() {
    local keys
    (umask 077 && "$vault" operator init -key-shares=1 -key-threshold=1 -format=json >"$DEMO/vault-init.json")
    keys=$(<"$DEMO/vault-init.json")
    "$vault" operator unseal "$(field unseal_keys_b64 0 <<<"$keys")" >/dev/null
    VAULT_TOKEN=$(field root_token <<<"$keys")
    BAO_TOKEN=$VAULT_TOKEN
    wait_for "an unsealed, leading Vault" 60 vault vault_leads

    "$vault" secrets enable -path=pki -max-lease-ttl=87600h pki
    "$vault" write -field=certificate pki/root/generate/internal \
        common_name="Portreeve demo root" key_type=ec key_bits=256 ttl=8760h >"$DEMO/ca.pem"
    "$vault" secrets enable -path=pki_int -max-lease-ttl=43800h pki
    "$vault" write -field=csr pki_int/intermediate/generate/internal \
        common_name="Portreeve demo issuing CA" key_type=ec key_bits=256 >"$DEMO/pki_int.csr"
    "$vault" write -field=certificate pki/root/sign-intermediate \
        csr=@"$DEMO/pki_int.csr" format=pem_bundle ttl=4380h >"$DEMO/pki_int.pem"
    "$vault" write pki_int/intermediate/set-signed certificate=@"$DEMO/pki_int.pem"
    "$vault" write pki_int/roles/edge allowed_domains=example.com allow_subdomains=true \
        key_type=ec key_bits=256 max_ttl=72h no_store=true
    "$vault" policy write portreeve-pki vault-policies/portreeve-pki.hcl
    "$vault" auth enable approle
    "$vault" write auth/approle/role/portreeve token_policies=portreeve-pki token_no_default_policy=true \
        token_ttl=1h token_max_ttl=24h
    ROLE_ID=$("$vault" read -field=role_id auth/approle/role/portreeve/role-id)
    (umask 077 && "$vault" write -force -field=secret_id auth/approle/role/portreeve/secret-id >"$DEMO/secret_id")
}

# ---- Backends --------------------------------------------------------------------------------------------------------

start_backends() {
    write_backend
    local name
    for name in orders orders-next; do
        say "starting the backend $name on 127.0.0.1:${PORT[$name]}"
        start "$name" python3 "$DEMO/backend.py" "$name" "${PORT[$name]}"
        cat >"$DEMO/services/$name.json" <<JSON
{
  "service": {
    "name": "$name", "address": "127.0.0.1", "port": ${PORT[$name]},
    "check": { "http": "http://127.0.0.1:${PORT[$name]}/healthz", "interval": "2s", "timeout": "1s", "status": "passing" }
  }
}
JSON
    done
}

backend_answers() { curl -fsS "http://127.0.0.1:${PORT[$1]}/healthz"; }

# ---- The agent -------------------------------------------------------------------------------------------------------

# The examples, with the ports of this run.
write_documents() {
    local document
    for document in edge shop; do
        sed -e "s/\b18080\b/${PORT[http]}/g" -e "s/\b18443\b/${PORT[https]}/g" \
            "hcl-examples/demo/$document.hcl" >"$DEMO/documents/$document.hcl"
    done
}

put() {
    echo "    \$ consul kv put portreeve/config/$1 @$SHOWN/documents/$2.hcl"
    consul kv put "portreeve/config/$1" "@$DEMO/documents/$2.hcl" >/dev/null || die "Consul did not take the document $1"
}

start_agent() {
    cat >"$DEMO/agent.hcl" <<HCL
# The agent's settings in this demo.
gateways  = ["edge"]
node_name = "demo"
data_dir  = "$RUN"
bind_addr = "127.0.0.1"
log_level = "${DEMO_LOG_LEVEL:-info}"

# Documents come from Consul KV, below portreeve/config/. They may use this one path of Vault.
kv_documents {
  vault_paths = ["pki_int/sign/edge"]
}

consul {
  address    = "$CONSUL_HTTP_ADDR"
  token_file = "$DEMO/consul_token"
}

vault {
  address = "$VAULT_ADDR"

  approle {
    role_id        = "$ROLE_ID"
    secret_id_file = "$DEMO/secret_id"
  }
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
    # Without the tokens of this script: the agent has what the two shipped policies give.
    start agent env -u VAULT_TOKEN -u BAO_TOKEN -u VAULT_ADDR -u BAO_ADDR -u CONSUL_HTTP_ADDR -u CONSUL_HTTP_TOKEN \
        "$PORTREEVE" agent -config "$DEMO/agent.hcl"
}

gateway_serves() {
    curl -fsS "http://127.0.0.1:${PORT[ready]}/ready" &&
        curl -fsS --resolve "$HOST:${PORT[http]}:127.0.0.1" "http://$HOST:${PORT[http]}/api/" &&
        curl -fsS --cacert "$DEMO/ca.pem" --resolve "$HOST:${PORT[https]}:127.0.0.1" "https://$HOST:${PORT[https]}/api/"
}

at_http=(--resolve "$HOST:${PORT[http]}:127.0.0.1")
at_https=(--resolve "$HOST:${PORT[https]}:127.0.0.1" --cacert "$DEMO/ca.pem")
http=http://$HOST:${PORT[http]}
https=https://$HOST:${PORT[https]}

requests() {
    ask "A service from the Consul catalog; the rule takes /api, the service sees the rest" \
        "200 from one of the two services, asked for /items/7" \
        '^HTTP/1.1 200 .*orders(-next)? answers GET /items/7' \
        -i "${at_http[@]}" "$http/api/items/7"

    title "Weights: 200 requests, nine of ten to orders, one of ten to orders-next"
    local counts first next status=wrong
    echo "    \$ curl -s ${at_http[*]} '$http/api/[1-200]' | cut -d ' ' -f 1 | sort | uniq -c"
    counts=$(curl -s --max-time 60 "${at_http[@]}" "$http/api/[1-200]" | cut -d ' ' -f 1 | sort | uniq -c) || true
    sed 's/^/    /' <<<"$counts"
    first=$(awk '$2 == "orders" {print $1}' <<<"$counts")
    next=$(awk '$2 == "orders-next" {print $1}' <<<"$counts")
    # 180 and 20 are meant; 1 in 10^9 runs falls outside of these bounds.
    if [[ $((${first:-0} + ${next:-0})) == 200 && ${next:-0} -ge 1 && ${next:-0} -le 50 ]]; then status=ok; fi
    verdict "$status" "all 200 answered, about 20 of them by orders-next"

    ask "A header chooses the more specific rule" \
        "200 from orders-next" \
        '^HTTP/1.1 200 .*orders-next answers GET /items/7' \
        -i -H 'x-preview: yes' "${at_http[@]}" "$http/api/items/7"

    ask "HTTPS, with a certificate that Vault issued; curl verifies it up to the demo's root" \
        "200 over HTTP/2, the certificate verified" \
        '^HTTP/2 200 .*orders(-next)? answers GET /items/7 .*verified: 0' \
        -i -w 'certificate verified: %{ssl_verify_result} (0 is yes)\n' "${at_https[@]}" "$https/api/items/7"

    ask "A redirect that keeps the rest of the path" \
        "308 to $https/api/items/7?page=2" \
        "^HTTP/1.1 308 .*location: $https/api/items/7\?page=2" \
        -i "${at_http[@]}" "$http/old/items/7?page=2"

    ask "A service that nobody has registered" \
        "503 with x-portreeve-reason: no-healthy-instance" \
        '^HTTP/1.1 503 .*x-portreeve-reason: no-healthy-instance' \
        -i "${at_http[@]}" "$http/invoices"

    ask "A path that no rule takes" \
        "404" \
        '^HTTP/1.1 404 ' \
        -i "${at_http[@]}" "$http/nowhere"
}

# answers_from NAME: one request, answered by NAME with status 200.
answers_from() {
    [[ $(curl -s --max-time 5 -w '%{http_code}' "${at_http[@]}" "$http/api/x") == "$1 answers GET /x"$'\n'200 ]]
}

count_answers() { curl -s --max-time 60 "${at_http[@]}" "$http/api/[1-50]" | cut -d ' ' -f 1 | sort | uniq -c | sed 's/^ *//'; }

live_change() {
    title "A live change: the release is done, every request goes to orders-next"
    sed -e 's/weight = 90/weight = 0/' -e 's/weight = 10/weight = 100/' \
        "$DEMO/documents/shop.hcl" >"$DEMO/documents/shop-next.hcl"
    diff -U 0 "$DEMO/documents/shop.hcl" "$DEMO/documents/shop-next.hcl" | sed -n 's/^[-+] /    &/p' || true
    put shop shop-next
    local begin counts status=wrong
    begin=$(date +%s%N)
    # Before the change one of ten answers came from there by chance: ten in a row are no chance.
    local row=0
    until ((row == 10)); do
        if answers_from orders-next; then row=$((row + 1)); else row=0; fi
        if (($(date +%s%N) - begin > 20000000000)); then break; fi
    done
    echo "    after $((($(date +%s%N) - begin) / 1000000)) ms ten answers in a row came from orders-next"
    counts=$(count_answers) || true
    echo "    then, of 50 requests: $counts"
    if [[ $counts == "50 orders-next" ]]; then status=ok; fi
    verdict "$status" "all 50 from orders-next"
}

says_typo() { grep -qF 'path_prefx' "$DEMO/agent.log"; }

bad_document() {
    title "A bad document: a typing error, stored over the good text"
    sed -e '0,/path_prefix/s//path_prefx/' "$DEMO/documents/shop-next.hcl" >"$DEMO/documents/shop-bad.hcl"
    put shop shop-bad
    local counts status=wrong
    wait_for "word of the bad document" 20 agent says_typo
    echo "    The agent says:"
    grep -m 1 -F 'path_prefx' "$DEMO/agent.log" | sed 's/^/    /'
    echo "    What the command line says of the same text, before it is stored:"
    echo "    \$ portreeve validate $SHOWN/documents/shop-bad.hcl"
    if "$PORTREEVE" validate $SHOWN/documents/shop-bad.hcl >"$DEMO/validate.out" 2>&1; then
        verdict wrong "validate to refuse it"
    fi
    sed 's/^/    /' "$DEMO/validate.out"
    counts=$(count_answers) || true
    echo "    Meanwhile, of 50 requests: $counts"
    if [[ $counts == "50 orders-next" ]]; then status=ok; fi
    verdict "$status" "all 50 from orders-next: the last good text stays in service"

    echo
    echo "    The good text again:"
    put shop shop
    status=wrong
    local begin=$SECONDS
    # One in ten goes to orders-next.
    until [[ $status == ok ]] || ((SECONDS - begin > 20)); do
        if answers_from orders; then status=ok; fi
    done
    verdict "$status" "orders answers again"
}

what_runs() {
    title "What is running"
    local row="    %-12s %-42s %s\n"
    # shellcheck disable=SC2059
    {
        printf "$row" Consul "http://$CONSUL_HTTP_ADDR (UI: /ui)" "pid ${PID[consul]}"
        printf "$row" "$vault_name" "$VAULT_ADDR" "pid ${PID[vault]}"
        printf "$row" orders "127.0.0.1:${PORT[orders]}" "pid ${PID[orders]}"
        printf "$row" orders-next "127.0.0.1:${PORT[orders-next]}" "pid ${PID[orders-next]}"
        printf "$row" portreeve "settings: $SHOWN/agent.hcl" "pid ${PID[agent]}"
        printf "$row" Envoy "127.0.0.1:${PORT[http]} (http), :${PORT[https]} (https)" "a child of portreeve"
    }
    echo "    The documents are in $SHOWN/documents, the logs in $SHOWN/*.log."
}

what_next() {
    title "The gateway stays up until Ctrl-C. Try, in another shell:"
    cat <<TEXT
    export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_HTTP_TOKEN=$CONSUL_HTTP_TOKEN
    export PATH="$PWD/target/tools/bin:$(dirname "$PORTREEVE"):\$PATH" PORTREEVE_API_SOCKET=$RUN/api.sock
    portreeve status
    portreeve explain GET $http/api/items/7
    tail -f $SHOWN/agent.log
    \$EDITOR $SHOWN/documents/shop.hcl && consul kv put portreeve/config/shop @$SHOWN/documents/shop.hcl
    kill ${PID[orders]}    # Consul's check fails within 2 s, and Envoy sends everything to orders-next
TEXT
}

# ---- The demo --------------------------------------------------------------------------------------------------------

start_consul
start_vault
start_backends
wait_for "Vault's API" 60 vault vault_listens
say "setting up Vault: a CA, the policy vault-policies/portreeve-pki.hcl, an AppRole for the agent"
ROLE_ID=
set_up_vault >"$DEMO/vault-setup.log" 2>&1
wait_for "Consul" 60 consul consul_leads
say "setting up Consul: the policy docs/deploy/consul-acl-policy.hcl, a token for the agent"
set_up_consul >"$DEMO/consul-setup.log" 2>&1
for name in orders orders-next; do
    wait_for "the backend $name" 30 "$name" backend_answers "$name"
    consul services register "$DEMO/services/$name.json" >/dev/null || die "Consul did not take the service $name"
done
say "storing the documents in Consul KV"
write_documents
put edge edge
put shop shop
say "starting the agent, which starts Envoy"
begin=$(date +%s%N)
start_agent
wait_for "answers of the gateway over HTTP and HTTPS" 60 agent gateway_serves
say "serving, $((($(date +%s%N) - begin) / 1000000)) ms after the agent's start"

what_runs
requests
live_change
bad_document
finish_asking
what_next
stay consul vault agent
