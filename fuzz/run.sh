#!/usr/bin/env bash
# Fuzzes every parser for some time, and prints what was run.
#
#   fuzz/run.sh [--fast] [SECONDS [TARGET…]]      600 seconds each, one after the other, unless told otherwise
#   fuzz/run.sh [--fast] INPUTS inputs [TARGET…]  until so many inputs have been tried
#
# --fast: without AddressSanitizer and without a look at the operands of comparisons, on files of up to 16 KiB: many times as many inputs
# in the same time. Panics, overflows, time and memory are found all the same; what was learnt is then gone through once with the sanitizer.
#
# Needs a nightly compiler and cargo-fuzz (cargo install cargo-fuzz). Exit code 1: an input was found that crashes, takes longer than
# 10 seconds or more than 2 GiB; it lies in fuzz/artifacts. What was learnt stays in fuzz/corpus.
set -euo pipefail

cd "$(dirname "$0")"
build=()
length=65536
if [ "${1:-}" = --fast ]; then
    shift
    build=(--sanitizer none --no-trace-compares --codegen-units 4)
    length=16384
fi
until=(-max_total_time="${1:-600}")
shift || true
if [ "${1:-}" = inputs ]; then
    shift
    until=(-runs="${until[0]#*=}")
fi
mapfile -t all < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"/\1/p' Cargo.toml)
[ $# -gt 0 ] || set -- "${all[@]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
limits=(-timeout=10 -rss_limit_mb=2048 -max_len="$length")
printf '%-14s %12s %10s %10s %8s\n' target inputs corpus coverage ending
for target in "$@"; do
    mkdir -p "corpus/$target"
    ending=clean
    cargo +nightly fuzz run "${build[@]}" "$target" "corpus/$target" "seeds/$target" -- "${until[@]}" "${limits[@]}" \
        -print_final_stats=1 >"$log" 2>&1 || { ending=FOUND; status=1; tail -n 40 "$log" >&2; }
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | tr -dc 0-9 || true)
    if [ ${#build[@]} -gt 0 ] && [ $ending = clean ]; then
        cargo +nightly fuzz run "$target" "corpus/$target" "seeds/$target" -- -runs=0 "${limits[@]}" >"$log" 2>&1 ||
            { ending=FOUND; status=1; tail -n 40 "$log" >&2; }
    fi
    printf '%-14s %12s %10s %10s %8s\n' "$target" "${inputs:-?}" "$(find "corpus/$target" -type f | wc -l)" "${coverage:-?}" "$ending"
done
exit $status
