#!/usr/bin/env bash
# Fuzzes the targets of src/fuzz with libFuzzer, guided by the code that each input reaches, and keeps what it learns.
#
#   tests/fuzz/run.sh                  every target, one after the other
#   tests/fuzz/run.sh NAME...          these
#
# FUZZ_SECONDS  for each target; 60 by default
#
# In and out: tests/fuzz/corpus/<target>, where those inputs stay that together reach the most code, and tests/fuzz/record.tsv.
# What is too much to be committed stays in target/fuzz/corpus; findings are in target/fuzz/crashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SECONDS_EACH=${FUZZ_SECONDS:-60}
RECORD=tests/fuzz/record.tsv
CORPUS=tests/fuzz/corpus
WORK=$PWD/target/fuzz
MOST_INPUTS=200            # as src/fuzz/replay.rs has it
MOST_BYTES=$((256 * 1024)) # as src/fuzz/replay.rs has it
SLOWEST=10                 # seconds that one input may take: what takes longer is a finding
MEMORY=2048                # MiB; what takes more is a finding
LONGEST=16384              # bytes of an input: longer ones reach the same code, slower

# The settings are read from files.
[[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm

say() { echo "fuzz: $*" >&2; }

# build: prints where the program is. Coverage needs flags of the stable compiler only; that they do not reach build scripts
# and macros takes a --target. No sanitizer of addresses: that needs a nightly compiler, and there is no unsafe code to look at.
build() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares" \
        cargo build --locked --profile fuzz --target "$host" --example fuzz --target-dir "${CARGO_TARGET_DIR:-$WORK}" >&2
    echo "${CARGO_TARGET_DIR:-$WORK}/$host/fuzz/examples/fuzz"
}

# seeds TARGET: what the project has anyway, read with the corpus.
seeds() {
    [[ ! -d tests/fuzz/findings/$1 ]] || echo "tests/fuzz/findings/$1"
    case $1 in
        documents_hcl | configuration) echo hcl-examples ;;
    esac
}

# last_number NAME LOG: of libFuzzer's statistics.
last_number() { sed -nE "s/^stat::$1: +([0-9]+)$/\1/p" "$2" | tail -1; }

# note TARGET SECONDS EXECUTIONS FINDINGS EDGES INPUTS: adds a run to the record.
note() {
    awk -v OFS='\t' -v target="$1" -v seconds="$2" -v executions="$3" -v findings="$4" -v edges="$5" -v inputs="$6" '
        NR == 1 { print; next }
        $1 == target { print target, $2 + seconds, $3 + executions, $4 + findings, edges, inputs; found = 1; next }
        { print }
        END { if (!found) print target, seconds, executions, findings, edges, inputs }' "$RECORD" >"$RECORD.new"
    { head -1 "$RECORD.new"; tail -n +2 "$RECORD.new" | sort; } >"$RECORD"
    rm "$RECORD.new"
}

# fuzz PROGRAM TARGET: returns 1 after a finding.
fuzz() {
    local program=$1 target=$2 log=$WORK/$2.log merged=$WORK/merged/$2 kept=$WORK/kept/$2 control=$WORK/$2.control
    local status=0 before=$SECONDS spent executions edges finding
    export FUZZ_TARGET=$target
    mkdir -p "$WORK/corpus/$target" "$WORK/crashes" "$CORPUS/$target"
    local inputs=("$WORK/corpus/$target" "$CORPUS/$target")
    mapfile -t -O 2 inputs < <(seeds "$target")
    "$program" -max_total_time="$SECONDS_EACH" -timeout=$SLOWEST -rss_limit_mb=$MEMORY -max_len=$LONGEST -print_final_stats=1 \
        -dict=tests/fuzz/words.dict -artifact_prefix="$WORK/crashes/$target-" "${inputs[@]}" >"$log" 2>&1 || status=$?
    spent=$((SECONDS - before))
    executions=$(last_number number_of_executed_units "$log")
    edges=$(sed -nE 's/.* cov: ([0-9]+) .*/\1/p' "$log" | tail -1)
    if ((status)); then
        finding=$(sed -nE 's/.*Test unit written to (.*)$/\1/p' "$log" | tail -1)
        say "$target: a finding; the end of $log:"
        grep -aE 'panicked at|ERROR: libFuzzer|SUMMARY' -A 1 "$log" | tail -8 >&2 || true
        say "replay: FUZZ_TARGET=$target $program $finding"
        say "make it smaller: FUZZ_TARGET=$target $program -minimize_crash=1 -max_total_time=60 -artifact_prefix=$WORK/crashes/ $finding"
    fi
    rm -rf "$merged" "$control"
    mkdir -p "$merged"
    if ! "$program" -merge=1 -set_cover_merge=1 -use_counters=0 -merge_control_file="$control" -timeout=$SLOWEST \
        -rss_limit_mb=$MEMORY -max_len=$LONGEST -artifact_prefix="$WORK/crashes/$target-" "$merged" "${inputs[@]}" >"$log.merge" 2>&1; then
        say "$target: the merge failed, its corpus stays as it is: $log.merge"
        return 1
    fi
    rm -rf "$kept"
    mkdir -p "$kept"
    say "$target: kept $(python3 tests/fuzz/keep.py "$control" "$kept" $MOST_INPUTS $MOST_BYTES)"
    rm -rf "${CORPUS:?}/$target"
    cp -r "$kept" "$CORPUS/$target"
    note "$target" "$spent" "${executions:-0}" $((status ? 1 : 0)) "${edges:-0}" "$(find "$CORPUS/$target" -type f | wc -l)"
    say "$target: $spent s, ${executions:-0} executions, ${edges:-0} edges"
    return $((status ? 1 : 0))
}

program=$(build)
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(FUZZ_TARGET=list "$program" 2>&1 | sed -n 's/^known: //p' | tr ' ' '\n')
found=()
for target in "${targets[@]}"; do
    fuzz "$program" "$target" || found+=("$target")
done
if ((${#found[@]})); then
    say "findings: ${found[*]}"
    exit 1
fi
