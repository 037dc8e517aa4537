#!/usr/bin/env bash
# Trains on two NVIDIA GPUs of this machine, one process each, beside one: the same curve, an end for both when one is killed, a run that goes on alone,
# and how much of twice the speed two have.
#
#   QAT=target/release/qat scripts/test-nccl.sh [FOLDER]        a qat built with --features nccl; leaves its runs in FOLDER [a temporary one]
#
# Starts the processes by the variables that torchrun sets: neither MPI nor Python is needed. RECIPE, SETS and WINDOWS for the speed [a model of
# 30M parameters in bf16; 32, 64 and 128 windows of 512 tokens a GPU], may be others. Exit code 77: there are no two GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
qat=$(realpath "${QAT:-target/release/qat}")
[ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ] || { echo "test-nccl: want two NVIDIA GPUs" >&2; exit 77; }
out=$(realpath -m "${1:-$(mktemp -d)}")
mkdir -p "$out"
export QAT_CACHE=$out/cache MASTER_ADDR=127.0.0.1
port=29600
fail() { echo "test-nccl: $*" >&2; exit 1; }

# Starts two ranks; their process ids are in `ranks`, what they say in $1.0 and $1.1.
start() {
  local log=$1 rank
  ranks=() port=$((port + 1))
  for rank in 0 1; do
    RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_PORT=$port "$qat" "${@:2}" --device cuda >"$log.$rank" 2>&1 &
    ranks+=($!)
  done
}
both() { start "$@" && wait "${ranks[0]}" && wait "${ranks[1]}"; }
losses() { sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$1/int4-g32/log.jsonl"; }
near() {
  paste <(losses "$1") <(losses "$2") |
    awk -v most="$3" '{ d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d } END { print "  at most " worst " apart"; exit worst > most || NR == 0 }'
}

recipe=(train configs/quickstart.toml --variant int4-g32 --plain --set train.steps=40 --set train.log_every=1 --set train.checkpoint_every=10
  --set train.valid_every=20 --set 'eval.require=[]')

echo "== the same curve as one process"
"$qat" "${recipe[@]}" --device cuda --out "$out/one" >"$out/one.txt" 2>&1
both "$out/two.txt" "${recipe[@]}" --out "$out/two" || fail "$(cat "$out"/two.txt.*)"
near "$out/one" "$out/two" 1e-4 || fail "the curves part"
[ ! -s "$out/two.txt.1" ] || fail "the second rank speaks: $(cat "$out/two.txt.1")"

echo "== two ranks twice give the same bits"
both "$out/again.txt" "${recipe[@]}" --out "$out/again" || fail "$(cat "$out"/again.txt.*)"
cmp "$out"/{two,again}/int4-g32/checkpoints/step-00000040/model.safetensors || fail "other bits"

echo "== speed: one GPU with half of the batch, two with all of it"
model=$out/model
cat >"$out/base.json" <<'JSON'
{"model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
"rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}
JSON
[ -d "$model" ] || "$qat" init --shape "$out/base.json" --format float --out "$model" >"$out/init.txt" 2>&1 || fail "$(cat "$out/init.txt")"
read -ra sets <<<"${SETS:---set train.precision=bf16 --set data.ctx=512}"
cat >"$out/speed.toml" <<TOML
[student]
from = "$model"
[quant]
weights = "int4-g32"
[data]
train = ["none"]
ctx = 512
[loss]
cross_entropy = 1.0
[train]
steps = 100
batch = 64
TOML
speed=(bench --train "${RECIPE:-$out/speed.toml}" --steps 40 --format json "${sets[@]}")
rate() { sed -n 's/.*"tokens_per_second": \([0-9.]*\).*/\1/p' "$1"; }
for windows in ${WINDOWS:-32 64 128 32 64}; do
  "$qat" "${speed[@]}" --set train.batch="$windows" --device cuda >"$out/speed.one"
  both "$out/speed.two" "${speed[@]}" --set train.batch=$((2 * windows)) || fail "$(cat "$out"/speed.two.*)"
  awk -v windows="$windows" -v one="$(rate "$out/speed.one")" -v two="$(rate "$out/speed.two.0")" \
    'BEGIN { printf "  %d windows a GPU: one GPU %.0f tokens/s, two %.0f: %.1f %% of twice one\n", windows, one, two, 50 * two / one }'
done

echo "== one of two is killed: both end, and one process goes on from the last checkpoint"
long=("${recipe[@]}" --set train.steps=4000 --set optim.schedule=constant)
start "$out/killed.txt" "${long[@]}" --out "$out/killed"
for _ in $(seq 1200); do
  [ -d "$out/killed/int4-g32/checkpoints/step-00000020" ] && break
  sleep 0.1
done
kill -9 "${ranks[1]}"
began=$SECONDS
status=0
wait "${ranks[0]}" || status=$?
[ $status = 2 ] || fail "the first ended with $status, not with 2: $(tail -3 "$out/killed.txt.0")"
echo "  the first ended after $((SECONDS - began)) s: $(tail -1 "$out/killed.txt.0")"
"$qat" "${long[@]}" --device cuda --out "$out/killed" --resume >"$out/resumed.txt" 2>&1 &
job=$!
for _ in $(seq 600); do
  grep -q "int4-g32: step" "$out/resumed.txt" && break
  sleep 0.1
done
kill -TERM $job
wait $job || true
grep -q "continuing after step" "$out/resumed.txt" || fail "$(cat "$out/resumed.txt")"
echo "test-nccl: passed; runs in $out"
