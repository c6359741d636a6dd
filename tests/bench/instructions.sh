#!/usr/bin/env bash
# Counts the instructions of one change among 1,000 and among 10,000 objects, and fails where ten times the objects cost
# more than 1.2 times as much: no step of one change walks all objects. Callgrind collects inside the measured function
# alone, so what it takes to build the world does not count.
#
#   tests/bench/instructions.sh [PROFILE]    bench, whose counts are those of a release; count, which builds in a fraction of the time
#   tests/bench/instructions.sh bench long   translate alone, among 1,000 and among 100,000: a quarter of an hour
#
# With RESUME=1 what the same build has counted already is not counted again.
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${1:-bench}
# Seconds of patience for one size: the short form takes half a minute, the long one a quarter of an hour.
few=1000 many=10000 label=10k what=--one-change suffix= patience=600
if [[ ${2:-} == long ]]; then
    many=100000 label=100k what=--translate-one patience=3600
elif [[ ${2:-} ]]; then
    echo "bench-instructions: there is no ${2@Q}, only long" >&2
    exit 2
else
    # The name without more is the one of the long form.
    suffix=_10k
fi
limit=1.2
times=50

if ! command -v valgrind >/dev/null; then
    echo "bench-instructions: NOT counted: there is no valgrind on this machine (Debian: apt-get install valgrind)"
    # A check that CI does not make is no check.
    [[ ${CI:-} != true ]]
    exit
fi
echo "bench-instructions: building" >&2
suite=$(cargo bench --locked --profile "$profile" --bench suite --no-run --message-format json 2>/dev/null |
    sed -nE 's/.*"name":"suite".*"executable":"([^"]+)".*/\1/p' | tail -1)
if [[ -z $suite ]]; then
    echo "bench-instructions: the suite does not build: cargo bench --locked --profile $profile --bench suite --no-run says why" >&2
    exit 1
fi
if [[ ${RESUME:-} ]] && "$suite" --has "instr_counted$suffix"; then
    echo "bench-instructions: counted by this build already, among $label" >&2
    exit
fi
SECONDS=0 # which bash counts on: the build is not in it
folder=target/bench/callgrind
mkdir -p "$folder"

# One process per size: callgrind writes a file each time that the measured function ends, in the order of the kinds. The
# two patterns mean the same and must differ: callgrind forgets the one when it reads the other.
count() { # objects
    local out="$folder/$1"
    rm -f "$out".*
    local status=0
    timeout --foreground "$patience" valgrind --tool=callgrind --collect-atstart=no --toggle-collect='suite::one_change::measured*' \
        --dump-after='*suite::one_change::measured*' --callgrind-out-file="$out" \
        "$suite" "$what" "$1" "$times" >"$out.kinds" 2>"$out.log" || status=$?
    if ((status == 124)); then
        echo "bench-instructions: FAILED: not counted in $((patience / 60)) minutes: to build $1 objects may cost their square; $suite $what $1 $times shows where" >&2
        exit 1
    elif ((status)); then
        cat "$out.log" >&2
        exit 1
    fi
    local part=0 kind total
    while read -r kind; do
        part=$((part + 1))
        total=$(sed -nE 's/^(summary|totals): *([0-9]+).*/\2/p' "$out.$part" | tail -1)
        echo "$kind $((total / times))"
    done <"$out.kinds"
}

declare -A small large
for objects in "$few" "$many"; do
    echo "bench-instructions: one change of each kind among $objects objects" >&2
    counted=$(count "$objects")
    while read -r kind each; do
        if [[ $objects == "$few" ]]; then small[$kind]=$each; else large[$kind]=$each; fi
    done <<<"$counted"
done

printf '%-24s %14s %14s %8s %8s\n' "instructions of one" "among 1k" "among $label" growth limit
failed=0
for kind in $(cut -d' ' -f1 "$folder/$few.kinds"); do
    growth=$(awk -v a="${small[$kind]}" -v b="${large[$kind]}" 'BEGIN { printf "%.3f", b / a }')
    verdict=
    if awk -v g="$growth" -v l="$limit" 'BEGIN { exit !(g > l) }'; then
        verdict=" GROWS"
        failed=1
    fi
    printf '%-24s %14d %14d %8s %8s%s\n' "$kind" "${small[$kind]}" "${large[$kind]}" "$growth" "$limit" "$verdict"
    # The summary is of releases: the other profile counts more.
    if [[ $profile == bench ]]; then
        if [[ $suffix ]]; then "$suite" --merge "${kind}_instr_1k" "${small[$kind]}"; fi
        "$suite" --merge "${kind}_instr_$label" "${large[$kind]}"
        "$suite" --merge "${kind}_instr_growth$suffix" "$growth"
    fi
done
if ((failed)); then
    echo "bench-instructions: FAILED: some step of a change walks all objects; callgrind_annotate $folder/$many.N tells which" >&2
    exit 1
fi
echo "bench-instructions: took $SECONDS s" >&2
# The last that is laid down: what was broken off, or grew, is counted again.
if [[ $profile == bench ]]; then
    "$suite" --merge "instr_seconds$suffix" "$SECONDS"
    "$suite" --merge "instr_counted$suffix" 1
fi
