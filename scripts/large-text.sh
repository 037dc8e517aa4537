#!/usr/bin/env bash
# Tokenizes generated text, 10 GB unless another number of GB is given: a part of it from one file, a part from JSON Lines, the rest told as it
# is read. Killed once on the way. Prints speed beside the tokenizer library's own, and the most memory that was held.
#
#     scripts/large-text.sh [GB] [FOLDER]     needs about 1.2 GB of disk for each, in FOLDER (by default a temporary one, removed in the end)
set -euo pipefail
cd "$(dirname "$0")/.."
gb=${1:-10}
folder=${2:-$(mktemp -d)}
mkdir -p "$folder"
trap '[ $# -ge 2 ] || rm -rf "$folder"' EXIT
cargo build --release --bin qat
qat=$PWD/target/release/qat
part=$(awk "BEGIN { printf \"%.0f\", $gb * 1e9 / 4 }")

"$qat" data text "stories:seed=1,bytes=$part" >"$folder/one.txt"
"$qat" data text "stories:seed=2,bytes=$part" | awk 'NF { gsub(/"/, "\\\""); print "{\"text\": \"" $0 "\"}" }' >"$folder/rows.jsonl"
ls -l "$folder"

export QAT_CACHE="$folder/cache"
tokenize=("$qat" data tokenize --format text --ctx 512 --model data/teacher --plain --bench
  "$folder/one.txt" "$folder/rows.jsonl" "stories:seed=3,bytes=$((2 * part))")
"${tokenize[@]}" &
killed=$!
until ls "$QAT_CACHE"/*.part.json >/dev/null 2>&1; do sleep 0.2; done
sleep "$(awk "BEGIN { print $gb * 2 }")"
kill -9 "$killed" || true
wait "$killed" || echo "killed; what is there of the file:"
ls -l "$QAT_CACHE"
"${tokenize[@]}"
ls -l "$QAT_CACHE"
