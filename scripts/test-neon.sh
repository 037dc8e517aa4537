#!/usr/bin/env bash
# Runs the tests of the packed kernels on Arm.
#
#   scripts/test-neon.sh [what cargo test takes]            default: -p qat-quant
#   scripts/test-neon.sh -p qat-quant --test main tiers     only the check that every tier passes, as CI does
#
# On an Arm machine they simply run. Elsewhere they are cross-compiled and run by qemu's user-mode emulation, once for
# each kind of processor: one with i8mm, one with dotprod only, one with neither. NEON_CPUS chooses others
# (`qemu-aarch64 -cpu help` lists them). The emulation proves results, not speed.
#
# Exit code 77: what it needs can't be had here, and nothing was tested. Needs rustup (for the target's std) and, as Debian and Ubuntu call them, gcc-aarch64-linux-gnu and qemu-user; root gets
# what is missing installed.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- -p qat-quant

case $(uname -m) in
  aarch64 | arm64) exec cargo test --release "$@" ;;
esac

target=aarch64-unknown-linux-gnu
linker=aarch64-linux-gnu-gcc
emulator=qemu-aarch64
cpus=${NEON_CPUS:-max neoverse-n1 cortex-a72}

if ! command -v $linker >/dev/null || ! command -v $emulator >/dev/null; then
  packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "test-neon: $linker and $emulator are missing; on Debian: apt-get install $packages" >&2
    exit 77
  fi
  give_up() { echo "test-neon: $packages can't be installed" >&2; exit 77; }
  apt-get update -qq || give_up
  # shellcheck disable=SC2086 # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null || give_up
fi
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
  rustup target add $target || {
    echo "test-neon: no standard library for $target; rustup target add $target brings it" >&2
    exit 77
  }
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator -L /usr/aarch64-linux-gnu"

# What each of the three must be found to have; of others, the tests ask the standard library.
tiers_of() {
  case $1 in
    max) echo portable neon-dotprod neon-i8mm ;;
    neoverse-n1) echo portable neon-dotprod ;;
    cortex-a72) echo portable ;;
  esac
}

for cpu in $cpus; do
  echo "== $cpu"
  QEMU_CPU=$cpu NEON_TIERS=$(tiers_of "$cpu") cargo test --release --target $target "$@"
done
