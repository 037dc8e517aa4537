#!/usr/bin/env bash
# Miri: codecs, packing, the portable kernels and the thread pool, interpreted; reads out of bounds, of what was never written or is not
# aligned, aliases and data races end it with an error.
#
#   scripts/check-miri.sh [quant] [pool]      both unless told otherwise
#
# Shapes and counts are smaller there (`cfg!(miri)`), kinds are not. Needs a nightly compiler with Miri; exit code 77 where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo +nightly miri --version >/dev/null 2>&1 || {
    echo "no Miri: rustup toolchain install nightly --component miri,rust-src" >&2
    exit 77
}
[ $# -gt 0 ] || set -- quant pool
# Files are read (fixtures); a product's bits may not depend on how sines are rounded.
flags="-Zmiri-disable-isolation -Zmiri-symbolic-alignment-check -Zmiri-deterministic-floats"
for part in "$@"; do
    case $part in
    quant)
        # rayon's threads never end, and its queues keep marks in the low bits of addresses.
        export MIRIFLAGS="$flags -Zmiri-ignore-leaks -Zmiri-permissive-provenance -Zmiri-tree-borrows"
        # Metal's kernels run in an emulator of compiled code, which Miri can't follow.
        cargo +nightly miri test -p qat-quant --lib -- layout:: format::
        cargo +nightly miri test -p qat-quant --test main -- bits:: products:: tiers::
        ;;
    pool)
        export MIRIFLAGS="$flags -Zmiri-strict-provenance"
        cargo +nightly miri test -p qat-infer --lib -- cpu::pool::
        ;;
    *)
        echo "no part is called $part: want quant or pool" >&2
        exit 2
        ;;
    esac
done
