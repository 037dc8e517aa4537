#!/usr/bin/env bash
# Builds llama.cpp outside the tree, makes models of the same random weights for it and for qat, runs both in turns on
# this machine, and prints one table with the ratios. See docs/benchmarks.md.
#
#   scripts/bench-peers.sh [PAIR…]
#
# A PAIR is SHAPE:PEER[/HEAD]:FORMAT[/EMBEDDINGS], such as smollm2-135m:Q4_0:int4-g32 (the head has the type of the
# layers) or bitnet-24x1024:TQ2_0/Q8_0:ternary-g256/int8-g32. Needs a C++ compiler, Python 3.10+ with venv, Rust, and the
# registries of Python and Rust. Settings, from the environment:
#
#   QAT_PEERS_DIR  where it builds and keeps models [~/.cache/qat-peers]; about 3 GiB
#   THREADS        of both [2]            REPS    repetitions in a round [3]
#   PP, TG, DEPTH  tokens [512, 128, 0]   ROUNDS  turns of both [2]
#   JOBS           of the compilers [all processors]
set -euo pipefail

llama_version=0.3.36
gguf_version=0.19.0
root=$(cd "$(dirname "$0")/.." && pwd)
peers=${QAT_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/qat-peers}
threads=${THREADS:-2} reps=${REPS:-3} rounds=${ROUNDS:-2}
pp=${PP:-512} tg=${TG:-128} depth=${DEPTH:-0}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
if [ $# -eq 0 ]; then
    set -- smollm2-135m:Q4_0:int4-g32 smollm2-360m:Q4_0:int4-g32 bitnet-24x1024:Q4_0:int4-g32 \
        bitnet-24x1024:TQ2_0:ternary-g256 bitnet-24x1024:TQ2_0:ternary-tensor \
        bitnet-24x1024:TQ2_0/Q8_0:ternary-g256/int8-g32
fi

say() { printf '%s\n' "$*" >&2; }

# Runs a command whose output matters only if it fails.
quietly() {
    local log=$1 && shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; say "failed: $*; all of it is in $log"; exit 1; }
}

build_peer() {
    bench=$peers/build/bin/llama-bench quantize=$peers/build/bin/llama-quantize
    python=$peers/venv/bin/python
    local stamp=$peers/built-$llama_version
    [ -f "$stamp" ] && return
    command -v c++ >/dev/null || { say "a C++ compiler is needed (Debian: apt-get install g++)"; exit 1; }
    say "building llama.cpp (llama-cpp-python $llama_version) in $peers"
    quietly "$peers/venv.log" python3 -m venv "$peers/venv"
    quietly "$peers/pip.log" "$python" -m pip install cmake ninja numpy "gguf==$gguf_version"
    rm -rf "$peers/source" "$peers/build"
    mkdir -p "$peers/source"
    quietly "$peers/download.log" "$python" -m pip download --no-deps --no-binary llama-cpp-python \
        --dest "$peers/source" "llama-cpp-python==$llama_version"
    tar -xzf "$peers/source"/llama_cpp_python-*.tar.gz -C "$peers/source" --strip-components 1
    export PATH=$peers/venv/bin:$PATH
    quietly "$peers/cmake.log" cmake -S "$peers/source/vendor/llama.cpp" -B "$peers/build" -G Ninja \
        -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    quietly "$peers/ninja.log" ninja -C "$peers/build" -j "$jobs" llama-bench llama-quantize
    touch "$stamp"
}

# The same weights for the peer: float directory → GGUF in F16 → the peer's own quantizer.
peer_model() {
    local shape=$1 type=$2 head=$3 out=$4
    [ -f "$out" ] && return
    local float=$peers/models/$shape-float f16=$peers/models/$shape-f16.gguf
    if [ ! -f "$f16" ]; then
        "$qat" init --shape "$shape" --format float --out "$float" >&2
        "$python" "$root/scripts/bench_peers.py" convert "$float" "$f16.part"
        mv "$f16.part" "$f16"
        rm -r "$float"
    fi
    quietly "$peers/quantize.log" "$quantize" --pure --token-embedding-type "$head" --output-tensor-type "$head" \
        "$f16" "$out.part" "$type" "$jobs"
    mv "$out.part" "$out"
}

# Splits a PAIR into shape, type, head, format, embeddings, and the paths of both models.
split() {
    local peer own
    IFS=: read -r shape peer own <<<"$1"
    [ -n "$shape" ] && [ -n "$peer" ] && [ -n "$own" ] || { say "$1: want SHAPE:PEER[/HEAD]:FORMAT[/EMBEDDINGS]"; exit 2; }
    type=${peer%%/*} head=${peer##*/} format=${own%%/*} embeddings=${own##*/}
    gguf=$peers/models/$shape-$type-$head.gguf
    packed=$peers/models/$shape-$format-$embeddings
    name=${1//[:\/]/_}
}

mkdir -p "$peers/models"
say "building qat"
(cd "$root" && cargo build --release --quiet)
qat=${CARGO_TARGET_DIR:-$root/target}/release/qat
build_peer

for pair in "$@"; do
    split "$pair"
    peer_model "$shape" "$type" "$head" "$gguf"
    "$qat" init --shape "$shape" --format "$format" --embeddings "$embeddings" --out "$packed" >&2
done

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
shares=()
for round in $(seq "$rounds"); do
    shares+=("$("$python" "$root/scripts/bench_peers.py" share "$threads")")
    for pair in "$@"; do
        split "$pair"
        say "round $round of $rounds: $pair"
        "$bench" -m "$gguf" -t "$threads" -p "$pp" -n "$tg" -d "$depth" -r "$reps" -o json \
            >"$results/$name.$round.peer.json" 2>"$peers/llama-bench.log" || { tail "$peers/llama-bench.log" >&2; exit 1; }
        "$qat" bench "$packed" --threads "$threads" --pp "$pp" --tg "$tg" --depth "$depth" --reps "$reps" \
            --activations int8 --format json >"$results/$name.$round.qat.json" 2>"$peers/qat-bench.log" \
            || { cat "$peers/qat-bench.log" >&2; exit 1; }
    done
done
for pair in "$@"; do
    split "$pair"
    peer=$type own=$format
    [ "$head" = "$type" ] || peer=$type/$head
    [ "$embeddings" = "$format" ] || own=$format/$embeddings
    printf '%s\t%s\t%s\t%s\t%s\n' "$shape" "$peer" "$own" "$results/$name" "$gguf"
done | "$python" "$root/scripts/bench_peers.py" table "${shares[@]}"
