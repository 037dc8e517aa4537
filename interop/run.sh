#!/usr/bin/env bash
# Exports tiny models of every architecture in every format, opens each in the runtime that it is for, and compares logits,
# greedy tokens and tokenization with qat's own. See docs/interop.md.
#
#   interop/run.sh [PART…]      a PART chooses the cases that have it in their name: gguf, qwen3, ternary, tokenizer …
#
# Needs Python 3.10+ with venv, a C++ compiler, Rust, and the registries of Python and Rust. Exit code 1: something differs; 77:
# this machine can't have what it needs. Settings, from the environment:
#
#   QAT_INTEROP_DIR   where it keeps the runtimes [~/.cache/qat/interop]; 7 GiB, most of it PyTorch for CUDA where pip finds no other
#   JOBS              of the compiler, and models that are checked at a time, some 1.5 GiB each [all processors]
set -euo pipefail

llama_version=0.3.36
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
home=${QAT_INTEROP_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/qat/interop}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
python=$home/venv/bin/python
llama=$home/llama.cpp

say() { printf '%s\n' "$*" >&2; }

# Runs a command whose output matters only if it fails, which means that something can't be had here.
quietly() {
    local log=$home/$1 && shift
    "$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; say "failed: $*; all of it is in $log"; exit 77; }
}

# Whether what was made before was made of this.
is_made() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

make_venv() {
    local wanted
    wanted=$(cat "$here/requirements.txt")
    is_made "$home/venv.made" "$wanted" && return
    say "installing the runtimes in $home"
    rm -rf "$home/venv"
    quietly venv.log python3 -m venv "$home/venv"
    quietly pip.log "$python" -m pip install --upgrade pip
    quietly pip.log "$python" -m pip install -r "$here/requirements.txt"
    printf '%s' "$wanted" >"$home/venv.made"
    rm -f "$home/llama.made"
}

# llama.cpp from the source package of its Python bindings. Not natively: the folder may be carried to another machine. With a BLAS
# of one function, sgemm/: with it llama.cpp can be made to compute in f32.
make_llama() {
    local wanted
    wanted="$llama_version $(cat "$here"/sgemm/*)"
    is_made "$home/llama.made" "$wanted" && return
    command -v c++ >/dev/null || { say "a C++ compiler is needed (Debian: apt-get install g++)"; exit 77; }
    say "building llama.cpp (llama-cpp-python $llama_version) in $home"
    rm -rf "$llama"
    mkdir -p "$llama/source"
    export PATH=$home/venv/bin:$PATH
    quietly download.log "$python" -m pip download --no-deps --no-build-isolation --no-binary llama-cpp-python \
        --dest "$llama" "llama-cpp-python==$llama_version"
    tar -xzf "$llama"/llama_cpp_python-*.tar.gz -C "$llama/source" --strip-components 1
    quietly sgemm.log cc -O2 -fPIC -shared -o "$llama/libsgemm.so" "$here/sgemm/sgemm.c"
    quietly cmake.log cmake -S "$llama/source/vendor/llama.cpp" -B "$llama/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_METAL=OFF -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=Generic \
        -DBLAS_LIBRARIES="$llama/libsgemm.so" -DBLAS_INCLUDE_DIRS="$here/sgemm" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    quietly ninja.log ninja -C "$llama/build" -j "$jobs" llama
    quietly bindings.log env CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
        "$python" -m pip install --no-deps --no-build-isolation --force-reinstall "$llama/source"
    printf '%s' "$wanted" >"$home/llama.made"
}

command -v python3 >/dev/null || { say "Python 3.10 or later is needed"; exit 77; }
mkdir -p "$home"
make_venv
make_llama
say "building qat"
(cd "$root" && cargo build --release --quiet)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LLAMA_CPP_LIB_PATH=$llama/build/bin PYTHONDONTWRITEBYTECODE=1 JOBS=$jobs
"$python" "$here/check.py" "${CARGO_TARGET_DIR:-$root/target}/release/qat" "$work" "$@"
