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
exec 8>&1 # what is printed when a signal meets a step whose output goes to a file

SHOWN=${DEMO_DIR:-target/demo} # as it is printed
DEMO=$PWD/$SHOWN
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

# What the caller's shell says about other servers must not lead anyone there.
for name in "${!CONSUL_@}" "${!VAULT_@}" "${!BAO_@}" "${!PORTREEVE_@}" "${!NOMAD_@}"; do
    [[ $name == PORTREEVE ]] || unset "$name"
done
unset NOTIFY_SOCKET
has_proxy=${http_proxy:-}${https_proxy:-}${HTTPS_PROXY:-}${all_proxy:-}${ALL_PROXY:-}
unset http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY

export PATH="$PWD/target/tools/bin:$PATH"
export CONSUL_HTTP_ADDR=127.0.0.1:${PORT[consul]}
export CONSUL_HTTP_TOKEN=00000000-0000-4000-8000-0000000000de # of whoever runs this demo, and of nobody else's Consul
export VAULT_ADDR=http://127.0.0.1:${PORT[vault]} BAO_ADDR=http://127.0.0.1:${PORT[vault]}
export VAULT_TOKEN='' BAO_TOKEN=''

declare -A PID=()
started=() # names, in the order of start

# ---- Saying ----------------------------------------------------------------------------------------------------------

bold='' green='' red='' dim='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
fi

say() { echo "${dim}demo:${plain} $*"; }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# die TEXT: the reason, and the last lines of every log that exists.
die() {
    trap - ERR
    echo "${red}demo: $*${plain}" >&2
    local log
    ((${#started[@]})) || exit 1 # the logs, if any, are another run's
    for log in "$DEMO"/*.log; do
        [[ -s $log ]] && printf -- '---- last lines of %s\n%s\n' "${log#"$PWD"/}" "$(tail -n 12 "$log")" >&2
    done
    exit 1
}

# ---- Starting and stopping -------------------------------------------------------------------------------------------

own_run=   # a short directory of ours for the agent's sockets, if one was needed

# start NAME COMMAND...: in the background, its output in NAME.log. In a process group of its own, so that Ctrl-C reaches
# this script alone; told to end when this script is killed.
start() {
    local name=$1
    shift
    local guard=()
    if command -v setpriv >/dev/null; then guard=(setpriv --pdeathsig TERM --); fi
    set -m
    "${guard[@]}" "$@" >"$DEMO/$name.log" 2>&1 </dev/null 8>&- 9>&- &
    PID[$name]=$!
    set +m
    started+=("$name")
}

is_running() { [[ -n ${PID[$1]:-} ]] && kill -0 "${PID[$1]}" 2>/dev/null; }

# stop NAME SECONDS: SIGTERM, then SIGKILL.
stop() {
    local name=$1 deadline=$((SECONDS + $2))
    is_running "$name" || return 0
    kill -TERM "${PID[$name]}" 2>/dev/null || true
    while is_running "$name" && ((SECONDS < deadline)); do sleep 0.05; done
    if is_running "$name"; then
        say "$name does not stop, killing it"
        kill -KILL -- "-${PID[$name]}" 2>/dev/null || true
    fi
    wait "${PID[$name]}" 2>/dev/null || true
}

# An Envoy outlives a killed agent, by design; here nobody would come back for it.
stop_orphaned_envoy() {
    local record=$RUN/envoy/edge/envoy-state.json pid
    [[ -r $record ]] || return 0
    for pid in $(grep -oE '"pid": *[0-9]+' "$record" | grep -oE '[0-9]+$'); do
        if grep -qsF "$RUN/envoy/edge/" "/proc/$pid/cmdline"; then
            say "stopping Envoy, which the agent left"
            kill -TERM "$pid" 2>/dev/null || true
        fi
    done
}

finish() {
    local code=$?
    trap '' INT TERM HUP
    trap - EXIT ERR
    set +e
    exec 1>&8
    if ((${#started[@]})); then
        echo
        say "stopping: ${started[*]}"
        # The agent first: it drains its Envoy while everything is still there.
        stop agent 40
        stop_orphaned_envoy
        local index
        for ((index = ${#started[@]} - 1; index >= 0; index--)); do stop "${started[index]}" 10; done
        say "stopped; the logs are in $SHOWN"
    fi
    [[ -z $own_run ]] || rm -rf "$own_run"
    exit "$code"
}

# wait_for WHAT SECONDS PROCESS COMMAND...: until COMMAND succeeds. Ends the demo when PROCESS has ended.
wait_for() {
    local what=$1 limit=$2 process=$3 begin=$SECONDS said=$SECONDS
    shift 3
    until "$@" >"$DEMO/wait.out" 2>&1; do
        is_running "$process" || die "$process ended while waiting for $what"
        if ((SECONDS - begin >= limit)); then
            cat "$DEMO/wait.out" >&2
            die "no $what within $limit s"
        fi
        if ((SECONDS - said >= 5)); then
            said=$SECONDS
            say "still waiting for $what ($((SECONDS - begin)) s)"
        fi
        sleep 0.1
    done
}

# ---- Before anything is started --------------------------------------------------------------------------------------

vault=$(command -v bao || command -v vault || true)
vault_name=Vault
if [[ $vault == */bao ]]; then vault_name=OpenBao; fi
for program in consul envoy python3 curl; do
    command -v $program >/dev/null || die "$program is not there: run \`make setup\`"
done
[[ -n $vault ]] || die "neither bao nor vault is there: run \`make setup\`"
[[ -x $PORTREEVE ]] || die "$PORTREEVE is not there: run \`make build\`"

mkdir -p "$DEMO"
if command -v flock >/dev/null; then
    exec 9>"$DEMO/.lock"
    flock -n 9 || die "another demo runs from this directory"
fi

check_ports() {
    python3 - "$@" <<'PYTHON'
import socket, sys
taken = []
for argument in sys.argv[1:]:
    name, port = argument.split("=")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(port)))
            except OSError:
                taken.append(f"{port} ({name})")
                break
if taken:
    sys.exit("taken on 127.0.0.1: " + ", ".join(taken))
PYTHON
}
ports=()
for name in "${!PORT[@]}"; do ports+=("$name=${PORT[$name]}"); done
if ! taken=$(check_ports "${ports[@]}" 2>&1); then
    echo "${red}demo: $taken; choose other ports with DEMO_PORT_BASE, for example DEMO_PORT_BASE=21000 make demo$plain" >&2
    exit 1
fi

find "$DEMO" -mindepth 1 -not -name .lock -delete
mkdir -p "$DEMO"/{documents,consul,vault,services}

RUN=$DEMO/agent
# Envoy's sockets lie in RUN/envoy/edge, and a unix socket's path has at most 107 bytes.
if ((${#RUN} > 60)); then
    own_run=$(mktemp -d /tmp/portreeve-demo.XXXXXX)
    RUN=$own_run
fi
mkdir -p "$RUN"
RUN=$(readlink -f "$RUN")

trap finish EXIT
trap 'die "line $LINENO failed: $BASH_COMMAND"' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- Consul ----------------------------------------------------------------------------------------------------------

# version_of PROGRAM: such as 1.18.2. The whole output is read first: a pipe cut short is an error here.
version_of() {
    local text
    text=$("$1" version)
    if [[ $text =~ [0-9]+\.[0-9]+\.[0-9]+ ]]; then echo "${BASH_REMATCH[0]}"; else echo 0.0.0; fi
}

start_consul() {
    local version extra='' root=initial_management
    version=$(version_of consul)
    # Since 1.14 servers open this port too, and older ones do not know the key.
    if [[ $(printf '%s\n' 1.14.0 "$version" | sort -V | head -1) == 1.14.0 ]]; then extra=', "grpc_tls": -1'; fi
    # Before 1.11 the first token of all had another name, and each version knows only its own.
    if [[ $(printf '%s\n' 1.11.0 "$version" | sort -V | head -1) != 1.11.0 ]]; then root=master; fi
    say "starting Consul $version on $CONSUL_HTTP_ADDR, with ACLs that deny by default"
    cat >"$DEMO/consul.json" <<JSON
{
  "server": true, "bootstrap_expect": 1, "node_name": "demo", "datacenter": "dc1",
  "data_dir": "$DEMO/consul", "bind_addr": "127.0.0.1", "advertise_addr": "127.0.0.1", "client_addr": "127.0.0.1",
  "ports": {
    "http": ${PORT[consul]}, "server": ${PORT[consul_server]}, "serf_lan": ${PORT[consul_serf]},
    "serf_wan": -1, "https": -1, "grpc": -1, "dns": -1$extra
  },
  "acl": {
    "enabled": true, "default_policy": "deny", "down_policy": "extend-cache",
    "tokens": { "$root": "$CONSUL_HTTP_TOKEN", "agent": "$CONSUL_HTTP_TOKEN" }
  },
  "performance": { "raft_multiplier": 1 }, "disable_update_check": true, "log_level": "warn"
}
JSON
    start consul consul agent -config-file="$DEMO/consul.json"
}

# Leading, and its own node in the catalog: sessions need both.
consul_leads() {
    consul acl token list && consul kv put portreeve/demo/started yes &&
        [[ $(curl -fsS -H "x-consul-token: $CONSUL_HTTP_TOKEN" "http://$CONSUL_HTTP_ADDR/v1/health/node/demo") == *serfHealth* ]]
}

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

field() { python3 -c 'import json,sys; value = json.load(sys.stdin)
for name in sys.argv[1:]: value = value[int(name)] if name.isdigit() else value[name]
print(value)' "$@"; }

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
    cat >"$DEMO/backend.py" <<'PYTHON'
"""Answers every request with one line: its own name, the method and the path that it saw."""
import http.server, sys

name, port = sys.argv[1], int(sys.argv[2])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def answer(self):
        body = f"{name} answers {self.command} {self.path}\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

Server(("127.0.0.1", port), Handler).serve_forever()
PYTHON
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

# ---- Asking and checking ---------------------------------------------------------------------------------------------

right=0 wrong=0

verdict() { # verdict OK|anything else, TEXT
    if [[ $1 == ok ]]; then
        right=$((right + 1))
        echo "    ${green}ok${plain}: $2"
    else
        wrong=$((wrong + 1))
        echo "    ${red}WRONG${plain}: expected $2"
    fi
}

# ask TITLE EXPECTATION PATTERN CURL-ARGUMENTS...: prints the line that a person would type, sends it, shows the answer
# and looks for PATTERN (an extended regular expression over the whole answer, its lines joined by one space each).
ask() {
    local heading=$1 expectation=$2 pattern=$3 answer line=curl argument status=wrong
    shift 3
    local arguments=("$@")
    if [[ -n $has_proxy ]]; then arguments+=(--noproxy '*'); fi
    for argument in "${arguments[@]}"; do
        argument=${argument//"$DEMO"/$SHOWN}
        if [[ $argument =~ [^A-Za-z0-9_./:=@,-] ]]; then argument="'$argument'"; fi
        line+=" $argument"
    done
    title "$heading"
    echo "    \$ $line"
    answer=$(curl --silent --show-error --max-time 10 "${arguments[@]}" 2>&1 | tr -d '\r') || true
    sed 's/^/    /' <<<"$answer"
    if [[ ${answer//$'\n'/ } =~ $pattern ]]; then status=ok; fi
    verdict "$status" "$expectation"
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
    until answers_from orders || ((SECONDS - begin > 20)); do :; done
    if answers_from orders || answers_from orders || answers_from orders; then status=ok; fi
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

if ((wrong)); then
    title "$right answers right, $wrong WRONG"
else
    title "All $right answers were right."
fi
if [[ ${CI:-} == true || ${CI:-} == 1 ]]; then
    exit $((wrong > 0))
fi

what_next
while true; do
    for name in consul vault agent; do
        is_running "$name" || die "$name has ended"
    done
    sleep 1
done
