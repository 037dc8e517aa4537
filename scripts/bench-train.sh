#!/usr/bin/env bash
# Training steps of qat beside those of PyTorch (eager), on this machine: equal shape, weights, tokens, optimizer; losses are
# compared step by step, then speed and memory. One table. See docs/training.md.
#
#   scripts/bench-train.sh [SHAPE:BATCHxCTX…]
#
# A SHAPE is small (4.9M parameters), base (30M), one that `qat init` knows, or the path of a config.json (Llama, tied head).
# Needs Rust and Python 3.11+ with torch and safetensors. Settings, from the environment:
#
#   PYTHON   with torch [python3]           DEVICE   cpu or cuda [cpu]
#   THREADS  of both, on the CPU [2]        DTYPE    of PyTorch's matrices: f32 or bf16 [f32]
#   STEPS    timed, after 3 to warm up [10] ROUNDS   turns of both [2]
#   SETS     keys of our recipe that are set otherwise, such as "optim.kind=muon" []
#   TF32     1: PyTorch rounds the inputs of its f32 products to TF32 []
#   QAT      a program built already; without it, one is built
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} device=${DEVICE:-cpu} dtype=${DTYPE:-f32}
threads=${THREADS:-2} steps=${STEPS:-10} rounds=${ROUNDS:-2}
[ $# -gt 0 ] || set -- small:4x128 base:4x512
sets=()
for set in ${SETS:-}; do sets+=(--set "$set"); done

if [ -z "${QAT:-}" ]; then
    features=()
    [ "$device" != cuda ] || features=(--features cuda)
    cargo build --release --quiet --manifest-path "$root/Cargo.toml" "${features[@]}"
    QAT=$root/target/release/qat
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A config.json: vocabulary, width, MLP, layers, heads.
shape() {
    printf '{"model_type": "llama", "vocab_size": %d, "hidden_size": %d, "intermediate_size": %d, "num_hidden_layers": %d,
"num_attention_heads": %d, "num_key_value_heads": %d, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
"rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}\n' "$1" "$2" "$3" "$4" "$5" "$5"
}
shape 4096 256 688 5 4 >"$work/small.json"
shape 8192 512 1376 8 8 >"$work/base.json"

files=()
for one in "$@"; do
    shape=${one%:*} size=${one##*:} name=$(basename "${one%:*}" .json)-${one##*:}
    [ ! -e "$work/$shape.json" ] || shape=$work/$shape.json
    model=$work/$name/model recipe=$work/$name.toml
    "$QAT" init --shape "$shape" --format float --out "$model" >&2
    cat >"$recipe" <<TOML
seed = 1
[student]
from = "$model"
[quant]
weights = "float"
embeddings = "float"
[data]
train = ["random"]
ctx = ${size#*x}
[loss]
cross_entropy = 1.0
[optim]
lr = 1e-3
betas = [0.9, 0.95]
eps = 1e-8
weight_decay = 0.1
clip = 1.0
schedule = "constant"
warmup_steps = 0
[train]
steps = 1000
batch = ${size%x*}
TOML
    for round in $(seq "$rounds"); do
        ours=$work/$name.$round.qat.json theirs=$work/$name.$round.torch.json
        RAYON_NUM_THREADS=$threads "$QAT" bench --train "$recipe" --steps "$steps" --device "$device" --json "$ours" \
            "${sets[@]}" >&2
        "$python" "$root/scripts/bench_train.py" torch "$model" "$recipe" "$theirs" --steps "$steps" \
            --device "$device" --dtype "$dtype" --threads "$threads" $([ -z "${TF32:-}" ] || echo --tf32)
        files+=("$ours" "$theirs")
    done
done
"$python" "$root/scripts/bench_train.py" table "${files[@]}"
