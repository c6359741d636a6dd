#!/usr/bin/env bash
# Counts the instructions of one change among 1,000 and among 10,000 objects, and their ratio: 1 where a change costs
# only itself. Callgrind collects inside the measured function alone; a run without changes is subtracted all the same.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v valgrind >/dev/null; then
    echo "bench-instructions: there is no valgrind: install it (Debian: apt install valgrind)" >&2
    exit 1
fi
echo "bench-instructions: building" >&2
suite=$(cargo bench --locked --bench suite --no-run --message-format json 2>/dev/null |
    sed -nE 's/.*"name":"suite".*"executable":"([^"]+)".*/\1/p' | tail -1)
folder=target/bench/callgrind
mkdir -p "$folder"
times=50

count() { # kind objects times
    local out="$folder/$1-$2-$3"
    valgrind --tool=callgrind --collect-atstart=no --toggle-collect='suite::one_change::measured*' \
        --callgrind-out-file="$out" "$suite" --one-change "$1" "$2" "$3" >"$out.log" 2>&1 ||
        { cat "$out.log" >&2; exit 1; }
    sed -nE 's/^(summary|totals): *([0-9]+).*/\2/p' "$out" | tail -1
}

printf '%-12s %18s %18s %10s\n' change "at 1,000" "at 10,000" growth
for kind in ${*:-translate route endpoint new}; do
    each=()
    for objects in 1000 10000; do
        echo "bench-instructions: $kind among $objects" >&2
        baseline=$(count "$kind" "$objects" 0)
        changed=$(count "$kind" "$objects" "$times")
        each+=($(((changed - ${baseline:-0}) / times)))
    done
    growth=$(awk -v a="${each[0]}" -v b="${each[1]}" 'BEGIN { printf "%.3f", b / a }')
    printf '%-12s %18d %18d %10s\n' "$kind" "${each[0]}" "${each[1]}" "$growth"
    prefix=$([ "$kind" = translate ] && echo translate_one || echo "pipeline_$kind")
    "$suite" --merge "${prefix}_instr_1k" "${each[0]}"
    "$suite" --merge "${prefix}_instr_10k" "${each[1]}"
    "$suite" --merge "${prefix}_instr_growth" "$growth"
done
