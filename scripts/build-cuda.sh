#!/usr/bin/env bash
# Builds qat for NVIDIA GPUs on a Linux machine without a GPU, a driver or CUDA: the program then runs where a driver of CUDA 13 and its libraries
# (cuBLAS, cuRAND, NVRTC; for several GPUs NCCL) are.
#
#   scripts/build-cuda.sh [CARGO ARGUMENTS…]          default: build --release --features cuda; several GPUs: --features nccl
#
# The compiler is put together from NVIDIA's packages on PyPI (105 MB) in $CUDA_TOOLKIT [~/.cache/qat-cuda], with stubs of the libraries to link against,
# named after what the crate cudarc asks of them. Nothing of the system is changed. The first build compiles all of candle's kernels: an hour on
# two processors. Needs Rust, gcc and Python with pip. CAP=90 is the compute capability (90: Hopper, 89: Ada, 80: Ampere).
set -euo pipefail
cd "$(dirname "$0")/.."
toolkit=${CUDA_TOOLKIT:-$HOME/.cache/qat-cuda} python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- build --release --features cuda
mkdir -p "$toolkit"
toolkit=$(cd "$toolkit" && pwd)

# 13.0, because kernels travel as PTX, which a driver refuses when a newer compiler wrote it.
if [ ! -x "$toolkit/bin/nvcc" ]; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    "$python" -m pip download -q --no-deps --only-binary=:all: -d "$wheels" --python-version 3.11 --implementation py --abi none \
        --platform any --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_12_x86_64 \
        --platform manylinux2010_x86_64 nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$wheels/unpacked"; done
    cp -r "$wheels/unpacked/nvidia/cu13/." "$toolkit/"
    chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/*
    ln -sfn lib "$toolkit/lib64"
    ln -sfn libcudart.so.13 "$toolkit/lib/libcudart.so"
fi
export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit NVCC=$toolkit/bin/nvcc PATH=$toolkit/bin:$PATH
export CUDA_COMPUTE_CAP=${CAP:-90} CUDARC_CUDA_VERSION=13000 CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}

# A library of empty functions: stub MODULE-OF-CUDARC SONAME FILE
stub() {
    {
        echo .text
        grep -oE 'load::<_F>\("[A-Za-z0-9_]+"\)' "$cudarc/src/$1/sys/mod.rs" | sed -E 's/.*"(.*)".*/\1/' | sort -u |
            while read -r name; do printf '.globl %s\n.type %s,@function\n%s: ret\n' "$name" "$name" "$name"; done
        echo '.section .note.GNU-stack,"",@progbits'
    } | gcc -shared -nostdlib -Wl,-soname,"$2" -o "$toolkit/lib/stubs/$3" -x assembler -
}
if [ ! -e "$toolkit/lib/stubs/.with-nccl" ]; then
    cudarc=$(cargo metadata --format-version 1 --all-features | "$python" -c '
import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
    mkdir -p "$toolkit/lib/stubs"
    stub driver libcuda.so.1 libcuda.so
    stub cublas libcublas.so.13 libcublas.so
    stub cublaslt libcublasLt.so.13 libcublasLt.so
    stub curand libcurand.so.10 libcurand.so
    stub nvrtc libnvrtc.so.13 libnvrtc.so
    stub nccl libnccl.so.2 libnccl.so
    touch "$toolkit/lib/stubs/.with-nccl"
fi
exec cargo "$@"
