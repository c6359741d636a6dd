#!/usr/bin/env bash
# What the demos share: saying, starting and stopping, a Consul, backends, asking and checking. Sourced by each of them, in
# the repository's root, with
#
#   TARGET            its name for make
#   SHOWN, PORTREEVE  its directory as printed, and the program
#   PORT              name to port, `consul`, `consul_server` and `consul_serf` among them
# shellcheck shell=bash disable=SC2034,SC2154
exec 8>&1 # what is printed when a signal meets a step whose output goes to a file
DEMO=$PWD/$SHOWN

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

declare -A PID=() ENDED=()
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

# how_it_ended NAME: of one that no longer runs, into ENDED: a status can be asked for once, and not from a subshell.
how_it_ended() {
    local name=$1 status=0
    [[ -z ${ENDED[$name]:-} ]] || return 0
    wait "${PID[$name]}" 2>/dev/null || status=$?
    if ((status > 128)); then
        ENDED[$name]="$name was ended by SIG$(kill -l $((status - 128)))"
    else
        ENDED[$name]="$name ended with exit status $status"
    fi
    ENDED[$name]+="; its log is $SHOWN/$name.log"
}

# stay NAMES...: until one of them ends, and with it the demo.
stay() {
    local name
    while true; do
        for name in "$@"; do
            is_running "$name" && continue
            how_it_ended "$name"
            die "${ENDED[$name]}"
        done
        sleep 1
    done
}

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
    unset "PID[$name]" # whoever has one and does not run ended by itself
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
        # Whatever failed, this may be why; and it comes after the logs.
        local name
        for name in "${started[@]}"; do
            [[ -n ${PID[$name]:-} ]] || continue
            is_running "$name" && continue
            how_it_ended "$name"
            say "${ENDED[$name]}"
        done
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
        if ! is_running "$process"; then
            how_it_ended "$process"
            die "no $what: ${ENDED[$process]}"
        fi
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

for program in consul envoy python3 curl; do
    command -v $program >/dev/null || die "$program is not there: run \`make setup\`, which fetches it or says where to get it"
done
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
    echo "${red}demo: $taken; choose other ports with DEMO_PORT_BASE, for example DEMO_PORT_BASE=21000 make $TARGET$plain" >&2
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
  "connect": { "enabled": true },
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

field() { python3 -c 'import json,sys; value = json.load(sys.stdin)
for name in sys.argv[1:]: value = value[int(name)] if name.isdigit() else value[name]
print(value)' "$@"; }

# ---- Backends --------------------------------------------------------------------------------------------------------

write_backend() {
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

# Says how it went. In CI that is the end.
finish_asking() {
    if ((wrong)); then
        title "$right answers right, $wrong WRONG"
    else
        title "All $right answers were right."
    fi
    if [[ ${CI:-} == true || ${CI:-} == 1 ]]; then
        exit $((wrong > 0))
    fi
}
