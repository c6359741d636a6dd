#!/usr/bin/env bash
# The shipped system job on two nodes of a real Nomad, each beside an agent of a real Consul (ACLs that deny by default),
# and OpenBao: what `portreeve setup` makes is all the rights there are. A client that follows Consul, as a load balancer
# does, sends requests throughout and counts those that fail. Then the job in its other forms (forms.sh, containers.sh), and
# Nomad's own catalog over TLS (discovery.sh).
#
# Needs root, `nomad` (1.11.3 or newer) and `python3` on PATH, and what `make setup` fetches. Where there is a `nomad-pack`
# the pack is rendered and run, and where there is a `dockerd` (with `docker`) one is started, without a network of its own,
# and the docker job run; else they are said to be left out. Everything listens on 127.0.0.1 and 127.0.0.2 and lies in one
# directory under /tmp, which is removed. It is not part of `make test`: Nomad is not packaged where these run. Its last
# output is in docs/nomad-run.md.
#
#   BASE=5000       all ports lie between this number and 5000 above it
#   PORTREEVE=...   another portreeve than target/debug/portreeve
#   ONLY=discovery  the last part alone, which needs no Consul
#   KEEP=1          leaves the directory, logs included
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
export PATH="$PWD/target/tools/bin:$PATH"
PORTREEVE=${PORTREEVE:-$PWD/target/debug/portreeve}
for program in nomad consul bao envoy python3 curl "$PORTREEVE"; do
    command -v "$program" >/dev/null || { echo "$program is not there" >&2; exit 2; }
done
[[ $(id -u) == 0 ]] || { echo "Nomad's clients need root" >&2; exit 2; }
DIR=$(mktemp -d /tmp/prn.XXXXXX)
BASE=${BASE:-5000}
HTTP=$((BASE + 80)) HTTPS=$((BASE + 443)) READY=$((BASE + 748))
CONSUL=$((BASE + 500)) VAULT=$((BASE + 200)) NOMAD=$((BASE + 646))
for name in "${!CONSUL_@}" "${!VAULT_@}" "${!BAO_@}" "${!NOMAD_@}"; do
    case $name in CONSUL | VAULT | NOMAD) ;; *) unset "$name" ;; esac
done
unset DOCKER_HOST DOCKER_CONTEXT http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY
export CONSUL_HTTP_ADDR=127.0.0.1:$CONSUL CONSUL_HTTP_TOKEN=00000000-0000-4000-8000-0000000000de
export BAO_ADDR=http://127.0.0.1:$VAULT VAULT_ADDR=http://127.0.0.1:$VAULT BAO_TOKEN=root VAULT_TOKEN=root
export NOMAD_ADDR=http://127.0.0.1:$NOMAD
cp "$ROOT/tests/nomad/server.py" "$DIR"
declare -A pid=()
load='' image=''

containers() { [[ -z $image ]] || docker ps -aq --filter "ancestor=$image"; }
end() {
    local code=$?
    trap - EXIT
    set +e
    ((code == 0)) || { echo "FAILED"; tail -n 8 "$DIR"/*.log "$DIR"/*.out; tail -n 25 "$DIR"/nomad*/alloc/*/alloc/logs/*agent.std*.0; }
    [[ -z $load ]] || kill "$load" 2>/dev/null
    # What they started first: the tasks of a Nomad that ends go on without it.
    for name in orders petstore internal portreeve; do timeout 90 nomad job stop "$name" >/dev/null 2>&1; done
    timeout 90 nomad job stop -namespace=shop parcels >/dev/null 2>&1
    for _ in $(seq 60); do
        pgrep -f "nomad executor .*$DIR/" >/dev/null || [[ -n $(containers) ]] || break
        sleep 0.5
    done
    containers | xargs -r docker rm -f >/dev/null 2>&1
    for name in discovery nomad-tls dockerd nomad-n2 nomad-n1 nomad-server bao consul-2 consul-1; do
        [[ -z ${pid[$name]:-} ]] || kill "${pid[$name]}" 2>/dev/null
    done
    sleep 1
    # Whatever is left runs with a file of this directory, or writes to one.
    for left in $(pgrep -f "$DIR/") $(pgrep -f "nomad logmon"); do
        if tr '\0' ' ' <"/proc/$left/cmdline" | grep -qF "$DIR/" || readlink "/proc/$left"/fd/* | grep -qF "$DIR/"; then
            kill -9 "$left"
        fi
    done 2>/dev/null
    awk -v dir="$DIR/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
    if [[ -n ${KEEP:-} ]] || grep -qF " $DIR/" /proc/mounts; then echo "kept: $DIR"; else rm -rf "$DIR"; fi
    exit "$code"
}
trap end EXIT

# ---- How it is said and awaited ------------------------------------------------------------------------------------------

step() { printf '\n== %s\n' "$*"; }
start() { # name, command...
    local name=$1
    shift
    "$@" >>"$DIR/$name.log" 2>&1 &
    pid[$name]=$!
    disown "$!" # so that bash does not report how it ended
}
until_ok() { # what, command...
    local what=$1 _
    shift
    for _ in $(seq 240); do
        if "$@" >"$DIR/last.out" 2>&1; then return 0; fi
        sleep 0.5
    done
    echo "gave up waiting for $what"
    return 1
}
ask() { # host, address, more of curl's arguments
    curl -sS -m 5 -H "host: $1" "${@:3}" "http://${2:-127.0.0.1}:$HTTP/"
}
answers() { [[ $(ask "$1" 127.0.0.1) == "$2" && $(ask "$1" 127.0.0.2) == "$2" ]]; }
load_on() {
    python3 "$ROOT/tests/nomad/load.py" 50 "$CONSUL_HTTP_ADDR" portreeve-edge "$HTTP" "$@" >"$DIR/load.out" 2>&1 &
    load=$!
}
load_off() { # ends it and says what it counted; fails if a request did
    local code=0
    kill "$load"
    wait "$load" || code=$?
    load=''
    cat "$DIR/load.out"
    return "$code"
}
field() { python3 -c 'import json, sys; print(eval(sys.argv[1], {"it": json.load(sys.stdin)}))' "$1"; }

# ---- Servers -------------------------------------------------------------------------------------------------------------

step "versions"
consul version | sed -n 1p
bao version | cut -d ' ' -f 1,2
nomad version | sed -n 1p
envoy --version | grep -oE '/1\.[0-9.]+/' | tr -d / | sed 's/^/Envoy /'

if [[ ${ONLY:-} == discovery ]]; then
    # shellcheck source=tests/nomad/discovery.sh
    source tests/nomad/discovery.sh
    step "done"
    exit
fi

step "Consul with ACLs, an agent on each of two nodes; OpenBao with a PKI"
key=initial_management
[[ $(consul version | sed -n 1p) =~ v1\.([0-9]|10)\. ]] && key=master
start_consul() { # node, more settings
    cat >"$DIR/consul-$1.json" <<JSON
{"node_name": "n$1", "data_dir": "$DIR/consul-$1", "bind_addr": "127.0.0.$1", "client_addr": "127.0.0.$1",
 "disable_update_check": true, "performance": {"raft_multiplier": 1}, $2
 "ports": {"http": $CONSUL, "server": $((BASE + 300)), "serf_lan": $((BASE + 301)), "serf_wan": -1, "dns": -1, "grpc": -1},
 "acl": {"enabled": true, "default_policy": "deny", "tokens": {"$key": "$CONSUL_HTTP_TOKEN", "agent": "$CONSUL_HTTP_TOKEN"}}}
JSON
    start "consul-$1" consul agent -config-file="$DIR/consul-$1.json"
}
start_consul 1 '"server": true, "bootstrap_expect": 1, "connect": {"enabled": true},'
start_consul 2 "\"retry_join\": [\"127.0.0.1:$((BASE + 301))\"],"
start bao bao server -dev -dev-no-store-token -dev-root-token-id=root -dev-listen-address=127.0.0.1:$VAULT
until_ok "Consul's two nodes" bash -c "consul members | grep -c alive | grep -qx 2"
until_ok "OpenBao" bao status
{
    bao secrets enable -path=pki_int pki
    bao write pki_int/root/generate/internal common_name=test ttl=24h
    bao write pki_int/roles/edge allowed_domains=example.com allow_subdomains=true allow_bare_domains=true max_ttl=24h
} >"$DIR/bao-setup.log" 2>&1

step "Nomad with ACLs, a server and two clients"
start_nomad() { # name, node, http port, settings of its own
    cat >"$DIR/nomad-$1.hcl" <<HCL
data_dir             = "$DIR/nomad-$1"
name                 = "$1"
bind_addr            = "127.0.0.$2"
disable_update_check = true
advertise {
  http = "127.0.0.$2"
  rpc  = "127.0.0.$2"
  serf = "127.0.0.$2"
}
ports {
  http = $3
  rpc  = $(($3 + 1))
  serf = $(($3 + 2))
}
acl {
  enabled = true
}
consul {
  address             = "127.0.0.$2:$CONSUL"
  token               = "$CONSUL_HTTP_TOKEN"
  service_auth_method = "nomad-services"
  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}
$4
HCL
    # Raw_exec tasks inherit the agent's environment, and must find everything by their own identity.
    start "nomad-$1" env -u NOMAD_ADDR -u NOMAD_TOKEN -u CONSUL_HTTP_ADDR -u CONSUL_HTTP_TOKEN -u VAULT_ADDR -u VAULT_TOKEN \
        -u BAO_ADDR -u BAO_TOKEN nomad agent -config="$DIR/nomad-$1.hcl"
}
start_nomad_server() {
    start_nomad server 1 "$NOMAD" 'server {
  enabled          = true
  bootstrap_expect = 1
}'
}
start_nomad_client() { # node
    mkdir -p "$DIR/gateway-$1"
    start_nomad "n$1" "$1" $((NOMAD + 10)) 'client {
  enabled           = true
  servers           = ["127.0.0.1:'$((NOMAD + 1))'"]
  network_interface = "lo"
  max_kill_timeout  = "40s"
  # Two clients on one machine would give the same port to two tasks.
  min_dynamic_port = '$((BASE + 3000 + 500 * $1))'
  max_dynamic_port = '$((BASE + 3499 + 500 * $1))'
  meta {
    address = "127.0.0.'$1'"
    state   = "'$DIR/gateway-$1'"
  }
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
  # What tasks under exec see: the two programs, and what they are linked to.
  chroot_env {
    "'$DIR/root/etc'"   = "/etc"
    "'$DIR/root/lib'"   = "/lib"
    "'$DIR/root/lib64'" = "/lib64"
    "'$DIR/root/usr'"   = "/usr"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
plugin "docker" {
  config {
    endpoint = "'"${DOCKER_HOST:-unix:///var/run/docker.sock}"'"
    gc {
      image = false
    }
  }
}'
}
root_of_tasks() { # a root directory for the driver exec, and for the image
    local file
    mkdir -p "$DIR/root/etc" "$DIR/root/usr/local/bin"
    for file in $(ldd "$PORTREEVE" "$(command -v envoy)" | grep -oE '/lib[^ ]+' | sort -u); do
        install -D "$file" "$DIR/root$file"
    done
    install "$PORTREEVE" "$DIR/root/usr/local/bin/portreeve"
    install "$(command -v envoy)" "$DIR/root/usr/local/bin/envoy"
    printf '%s:/:/bin/false\n' root:x:0:0: portreeve:x:100:100: nobody:x:65534:65534: >"$DIR/root/etc/passwd"
    printf '%s:\n' root:x:0 portreeve:x:100 nogroup:x:65534 >"$DIR/root/etc/group"
}
start_dockerd() { # with its own socket, data and containerd; the job's containers have the node's network
    export DOCKER_HOST=unix://$DIR/docker.sock
    start dockerd dockerd --host="$DOCKER_HOST" --data-root="$DIR/docker" --exec-root="$DIR/docker-run" \
        --pidfile="$DIR/dockerd.pid" --bridge=none --iptables=false --ip6tables=false
    until_ok "dockerd" docker info
}
if command -v dockerd >/dev/null && command -v docker >/dev/null; then start_dockerd; fi
root_of_tasks
start_nomad_server
start_nomad_client 1
start_nomad_client 2
until_ok "Nomad" curl -fsS "$NOMAD_ADDR/v1/status/leader"
until_ok "Nomad's keys" curl -fsS "$NOMAD_ADDR/.well-known/jwks.json"
until_ok "a leader" bash -c "nomad acl bootstrap -json >$DIR/bootstrap.json"
NOMAD_TOKEN=$(field 'it["SecretID"]' <"$DIR/bootstrap.json")
export NOMAD_TOKEN
two_ready() { [[ $(nomad node status | grep -cw ready) == 2 ]]; }
until_ok "two ready clients" two_ready

step "portreeve setup consul and vault, and not yet nomad"
jwks=-nomad-jwks-url=http://127.0.0.1:$NOMAD/.well-known/jwks.json
member=-mesh-service=edge-gw
absent() { # after a dry run
    if "$@" >"$DIR/last.out" 2>&1; then
        echo "it is there: $*"
        return 1
    fi
}
"$PORTREEVE" setup consul "$jwks" "$member" -dry-run | grep -E '^[+~=]|to do'
absent consul acl policy read -name portreeve
"$PORTREEVE" setup consul "$jwks" "$member" >/dev/null
"$PORTREEVE" setup consul "$jwks" "$member" | grep -E 'Nothing'
"$PORTREEVE" setup vault "$jwks" -dry-run | grep 'to do'
absent bao policy read portreeve-pki
"$PORTREEVE" setup vault "$jwks"
"$PORTREEVE" setup vault "$jwks" | grep -E 'Nothing'

# ---- The gateway ---------------------------------------------------------------------------------------------------------

step "the document, and the shipped system job on both nodes"
consul kv put portreeve/config/edge - >/dev/null <<HCL
gateway "edge" {
  listener "http" {
    port = $HTTP
  }

  listener "https" {
    port     = $HTTPS
    protocol = "https"
    tls {
      certificates = ["www", "kept"]
    }
  }
}

certificate "kept" {
  nomad_variable {
    path = "nomad/jobs/portreeve"
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
  hostnames = ["native.example.com", "kept.example.com"]

  rule "all" {
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

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "all" {
    backend "upstream" "shop" {}
  }
}

upstream "shop" {
  nomad {
    service   = "parcels"
    namespace = "shop"
  }
}

http_route "any" {
  gateways  = ["edge"]
  hostnames = ["any.example.com"]

  rule "all" {
    backend "upstream" "any" {}
  }
}

upstream "any" {
  nomad {
    service   = "parcels"
    namespace = "*"
  }
}
HCL
consul kv put portreeve/config/petstore - >/dev/null <<'HCL'
upstream "petstore" {
  connect {}
}

http_route "petstore" {
  gateways  = ["edge"]
  hostnames = ["petstore.example.com"]

  rule "all" {
    backend "upstream" "petstore" {}
  }
}
HCL
cat >"$DIR/more.hcl" <<'HCL'
catalog {
  hostnames = ["*.apps.example.com"]
}

mesh {
  service = "edge-gw"
}

nomad {}
HCL
keep_certificate() { # common name: into the variable that the gateway's own job may read
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj "/CN=$1" \
        -addext "subjectAltName=DNS:kept.example.com" -keyout "$DIR/kept.key" -out "$DIR/kept.pem" 2>/dev/null
    nomad var put -force nomad/jobs/portreeve certificate=@"$DIR/kept.pem" private_key=@"$DIR/kept.key" >"$DIR/variable.out" 2>&1
}
subject() { openssl s_client -connect "127.0.0.$1:$HTTPS" -servername "$2" </dev/null 2>/dev/null | openssl x509 -noout -subject; }
gateway() {
    nomad job run -detach=false -var driver=raw_exec -var user=root -var data_dir='{{ env "meta.state" }}' \
        -var bind_address='${meta.address}' -var ready_address='${meta.address}' -var public_address='${meta.address}' \
        -var consul_address="{{ env \"meta.address\" }}:$CONSUL" -var vault_address="$VAULT_ADDR" \
        -var portreeve="$PORTREEVE" -var envoy="$(command -v envoy)" -var http_port=$HTTP -var https_port=$HTTPS \
        -var ready_port=$READY -var drain_seconds=3 -var more_settings="$(cat "$DIR/more.hcl")" \
        "$@" "${JOB:-nomad/portreeve.nomad.hcl}" >"$DIR/job.out" 2>&1
}
version_of() { nomad job inspect portreeve | field 'it["Job"]["Version"]'; }
deployment() { nomad job deployments -json portreeve | field 'max(it, key=lambda one: one["CreateIndex"])["Status"]'; }
keep_certificate first
gateway
for node in 1 2; do until_ok "the gateway on n$node" curl -fsS "http://127.0.0.$node:$READY/ready"; done
echo "ready on both nodes, with workload identity alone; deployment $(deployment)"

step "a service deployed, exposed by its tags, and one in Nomad's own catalog"
orders() { nomad job run -var release="$1" -var server="$DIR/server.py" tests/nomad/orders.nomad.hcl >"$DIR/job.out" 2>&1; }
both=(orders.apps.example.com native.example.com)
settled() { (($(nomad job allocs -json "${1:-orders}" | field 'sum(a["ClientStatus"] == "running" for a in it)') == ${2:-4})); }
all_answer() { answers "${both[0]}" "release $1" && answers "${both[1]}" "release $1"; }
orders 1
until_ok "both" all_answer 1
for node in 1 2; do
    echo "n$node: orders.apps.example.com: $(ask orders.apps.example.com 127.0.0.$node), https://native.example.com:" \
        "$(curl -sS -k --connect-to "::127.0.0.$node:$HTTPS" https://native.example.com/)"
done

step "a service in another of Nomad's namespaces, by the job's own identity, before and after portreeve setup nomad"
nomad namespace apply shop >/dev/null
nomad job run -var namespace=shop -var name=parcels -var count=2 -var release=1 -var server="$DIR/server.py" \
    tests/nomad/stock.nomad.hcl >"$DIR/job.out" 2>&1
code() { ask "$1" "127.0.0.$2" -o /dev/null -w '%{http_code}'; }
missed() { "$PORTREEVE" status -api-socket="$DIR/gateway-$1/api.sock" | grep -A 8 -F 'no instance of the service "parcels"'; }
# Nomad shows any workload the services of a namespace that it names. The list of all, and the event stream, take the rule.
without() { missed "$1" && [[ $(code any.example.com "$1") == 503 && $(ask shop.example.com "127.0.0.$1") == "release 1" ]]; }
stream() { # with the agent's identity: whether anything comes, if only a sign of life, before it ends
    grep -qF '{' < <(curl -sN -m 30 -H "X-Nomad-Token: $(cat "$DIR"/nomad-n1/alloc/*/agent/secrets/nomad_token)" \
        "$NOMAD_ADDR/v1/event/stream?topic=Service&namespace=*")
}
agents() { pgrep -f "^$PORTREEVE agent .*$DIR/" | sort | tr '\n' ' '; }
for node in 1 2; do until_ok "what n$node has without the policy" without "$node"; done
for node in 1 2; do
    echo "n$node, without the policy: namespace = \"shop\": $(ask shop.example.com 127.0.0.$node), namespace = \"*\": $(code any.example.com $node)"
done
missed 1 | grep -E 'warning|help' | tr -s ' \n' ' ' | sed 's/ $/\n/'
absent stream
echo "the event stream, with the agent's identity: ended by Nomad"
had=$(agents)
[[ $(wc -w <<<"$had") == 2 ]]
"$PORTREEVE" setup nomad -dry-run | grep 'to do'
absent nomad acl policy info portreeve
for node in 1 2; do without "$node" >/dev/null; done
"$PORTREEVE" setup nomad
"$PORTREEVE" setup nomad | grep -E 'Nothing'
until_ok "the other namespace's service by the wildcard" answers any.example.com "release 1"
for node in 1 2; do
    echo "n$node, with it: namespace = \"shop\": $(ask shop.example.com 127.0.0.$node), namespace = \"*\": $(ask any.example.com 127.0.0.$node)"
done
until_ok "the event stream" stream
echo "the event stream, with the agent's identity: goes on"
[[ $(version_of) == 0 && $(agents) == "$had" ]]
echo "nothing was restarted: the job has version 0, and both agents are the same processes"

step "a service in Consul's mesh, with a token by its own workload identity, that the gateway enters as edge-gw"
petstore() { nomad job run -var release="$1" -var server="$DIR/server.py" tests/nomad/petstore.nomad.hcl >"$DIR/job.out" 2>&1; }
explain() { "$PORTREEVE" explain -api-socket="$DIR/gateway-$1/api.sock" GET http://petstore.example.com:$HTTP/; }
denied() { explain "$1" | grep -F 'denied by default'; }
printf 'Kind = "service-defaults"\nName = "petstore"\nProtocol = "http"\n' | consul config write - >/dev/null
petstore 1
for node in 1 2; do until_ok "the denial on n$node" denied "$node"; done
echo "n1, before there is an intention: $(ask petstore.example.com 127.0.0.1 -o /dev/null -w '%{http_code}'), $(denied 1 | tr -s ' ')"
consul intention create -allow edge-gw petstore >/dev/null
until_ok "the mesh" answers petstore.example.com "release 1"
echo "both nodes, after consul intention create -allow edge-gw petstore: $(ask petstore.example.com)"

# ---- Under load ----------------------------------------------------------------------------------------------------------

step "both services rolled to a new release under load, then the one in the mesh"
both+=(petstore.example.com shop.example.com any.example.com)
load_on "${both[@]}"
sleep 2
orders 2
until_ok "the new release" all_answer 2
until_ok "the end of the old one" settled
petstore 2
until_ok "the new release in the mesh" answers petstore.example.com "release 2"
until_ok "the end of the old one" settled petstore 2
sleep 2
load_off

step "Portreeve's agent killed on both nodes under load, then another release"
load_on "${both[@]}"
nomad job allocs -json portreeve | field '" ".join(a["ID"] for a in it if a["ClientStatus"] == "running")' >"$DIR/allocs.out"
consul_tokens() { consul acl token list -format=json | field 'sorted(t["AccessorID"] for t in it if t.get("AuthMethod") == "portreeve")'; }
had=$(consul_tokens)
for alloc in $(<"$DIR/allocs.out"); do nomad alloc signal -s SIGKILL -task agent "$alloc" >/dev/null; done
sleep 2
orders 3
until_ok "the new release" all_answer 3
until_ok "the end of the old one" settled
sleep 2
[[ $(field 'len(it)' <<<"${had//\'/\"}") == 2 && $(consul_tokens) == "$had" ]]
echo "both agents go on with the token of Consul that they had"
load_off

for what in "client on n1" "only server"; do
    step "Nomad's $what killed and started again under load, then another release"
    release=$((${release:-3} + 1))
    load_on "${both[@]}"
    if [[ $what == client* ]]; then
        kill -9 "${pid[nomad-n1]}"
        sleep 3
        start_nomad_client 1
    else
        kill -9 "${pid[nomad-server]}"
        sleep 3
        start_nomad_server
    fi
    until_ok "Nomad again" two_ready
    sleep 5
    orders "$release"
    until_ok "the new release" all_answer "$release"
    until_ok "the end of the old one" settled
    sleep 2
    load_off
done

step "the agents' Consul and Vault tokens revoked under load: they log in again, with identities that Nomad keeps fresh"
load_on "${both[@]}"
logins() { bao list -format=json auth/token/accessors | field 'len(it)'; }
revoke() { # every token that the agents have of Consul and of Vault
    local accessor
    old=$(consul_tokens) before=$(logins)
    for accessor in $(tr -d "[],'" <<<"$old"); do consul acl token delete -id "$accessor" >/dev/null; done
    for accessor in $(bao list -format=json auth/token/accessors | field '" ".join(it)'); do
        if bao token lookup -format=json -accessor "$accessor" | grep -q portreeve-pki; then bao token revoke -accessor "$accessor" >/dev/null; fi
    done
    echo "Vault's tokens before: $before, after the revocation: $(logins)"
}
name_certificate() { # a common name: a certificate that takes a new login
    consul kv get portreeve/config/edge | sed -E "s/(common_name = )\"[^\"]*\"/\1\"$1\"/" | consul kv put portreeve/config/edge - >/dev/null
}
logged_in_anew() { # a certificate of this name on both nodes, and two tokens of Consul in place of the two that were revoked
    name_certificate "$1"
    shows() { subject "$1" "$2" | grep -q "CN *= *$2\$"; }
    for node in 1 2; do until_ok "a certificate that takes a new login on n$node" shows "$node" "$1"; done
    echo "a document changed, and a certificate of another name issued on both nodes; Vault's tokens now: $(logins)"
    new=$(consul_tokens)
    [[ $(field 'len(it)' <<<"${new//\'/\"}") == 2 && $new != "$old" ]]
    echo "two new tokens of Consul in place of two"
}
revoke
logged_in_anew www.native.example.com
load_off

step "the same with identities that last 30 s: Nomad renews them, and the agents log in with the new ones under load"
# As shipped but for that.
JOB=$DIR/short.nomad.hcl
sed -E 's/( ttl +=) "1h"/\1 "30s"/' nomad/portreeve.nomad.hcl >"$JOB"
[[ $(grep -cE ' ttl += "30s"' "$JOB") == 2 ]]
gateway
unset JOB
for node in 1 2; do until_ok "the gateway on n$node" curl -fsS "http://127.0.0.$node:$READY/ready"; done
running() { nomad job allocs -json portreeve | field '" ".join(a["NodeName"] + "/alloc/" + a["ID"] for a in it if a["ClientStatus"] == "running")'; }
identities() { # of both agents, for both logins: the file, and when what is in it ends
    local alloc name
    for alloc in $(running); do
        for name in consul vault; do
            python3 - "$DIR/nomad-$alloc/agent/secrets/nomad_$name.jwt" <<'PYTHON'
import base64, json, sys
claims = open(sys.argv[1]).read().split(".")[1]
print(sys.argv[1], json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
PYTHON
        done
    done | sort
}
load_on "${both[@]}"
identities >"$DIR/identities"
[[ $(wc -l <"$DIR/identities") == 4 ]]
cp "$(sed -n '/_consul/s/ .*//p' "$DIR/identities" | sed -n 1p)" "$DIR/first_consul.jwt"
cp "$(sed -n '/_vault/s/ .*//p' "$DIR/identities" | sed -n 1p)" "$DIR/first_vault.jwt"
renewed() { # every one of them, and once more
    identities >"$DIR/identities-now"
    [[ $(join "$DIR/$1" "$DIR/identities-now" | awk '$3 > $2' | wc -l) == 4 ]]
}
until_ok "Nomad to renew the identities" renewed identities
cp "$DIR/identities-now" "$DIR/identities-second"
until_ok "Nomad to renew them again" renewed identities-second
echo "Nomad has renewed all four identities, and each of them again"
# Both take one for a minute longer than it says.
ended=$(awk '$2 > most { most = $2 } END { print most }' "$DIR/identities")
sleep $((ended + 61 > $(date +%s) ? ended + 61 - $(date +%s) : 0))
with_first_consul() { consul login -method portreeve -bearer-token-file "$DIR/first_consul.jwt" -token-sink-file "$DIR/sink"; }
with_first_vault() { bao write auth/jwt-nomad/login role=portreeve jwt=@"$DIR/first_vault.jwt"; }
for product in consul vault; do
    absent "with_first_$product"
    grep -qi expired "$DIR/last.out"
done
echo "the first ones have ended: neither Consul nor Vault takes one any more"
revoke
logged_in_anew native.example.com
sleep 2
load_off

step "a certificate in a Nomad variable replaced under load, a handshake for each request; then the variable deleted"
kept() { subject "$1" kept.example.com | grep -q "$2"; }
for node in 1 2; do until_ok "the certificate on n$node" kept "$node" first; done
load_on "kept.example.com@$HTTPS"
sleep 2
keep_certificate second
for node in 1 2; do until_ok "the next one on n$node" kept "$node" second; done
echo "the next one is served on both nodes"
nomad var purge nomad/jobs/portreeve >/dev/null
told() { "$PORTREEVE" status -api-socket="$DIR/gateway-$1/api.sock" | grep -F 'Nomad has no such variable'; }
for node in 1 2; do until_ok "its end told on n$node" told "$node"; done
for node in 1 2; do kept "$node" second; done
echo "the variable is gone, both nodes say so and serve what was in it"
keep_certificate third
for node in 1 2; do until_ok "the third on n$node" kept "$node" third; done
sleep 2
load_off

step "the gateway updated under load, one node after the other"
load_on "${both[@]}"
sleep 2
before=$(version_of)
gateway -var drain_seconds=4
echo "version $before to $(version_of), deployment $(deployment)"
sleep 5
load_off

step "a version that cannot start, under load: it stops at the first node and is reverted"
load_on "${both[@]}"
before=$(version_of)
gateway -var healthy_deadline=25s -var portreeve=/bin/false && { echo "it was taken"; exit 1; }
grep -o "Failed due to unhealthy allocations.*" "$DIR/job.out" | sed -n 1p
# A revert has no deployment of its own.
reverted() {
    nomad job allocs -json portreeve |
        field '[a["JobVersion"] for a in it if a["ClientStatus"] == "running"] == [int("'"$((before + 2))"'")] * 2' | grep -x True
}
until_ok "the revert" reverted
echo "both nodes run version $((before + 2)), which is $before again"
for node in 1 2; do until_ok "the gateway on n$node" curl -fsS "http://127.0.0.$node:$READY/ready"; done
sleep 5
load_off

# shellcheck source=tests/nomad/forms.sh
source tests/nomad/forms.sh
# shellcheck source=tests/nomad/containers.sh
source tests/nomad/containers.sh
# shellcheck source=tests/nomad/discovery.sh
source tests/nomad/discovery.sh

step "done"
