#!/usr/bin/env bash
# The runtime under the compiler's sanitizers: threads that wait spinning, sessions, and the C interface from C; with the standard library
# built the same way, so that nothing is unseen and nothing has to be excused.
#
#   scripts/check-sanitizers.sh [thread] [address]     both unless told otherwise
#
# Needs Linux, a C compiler with sanitizers, and a nightly compiler with its sources; exit code 77 where there is none. What it builds
# (some 2 GB each) lies in target/sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."

sources=$(rustc +nightly --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/std
[ "$(uname -s)" = Linux ] && [ -d "$sources" ] || {
    echo "no nightly compiler with its sources: rustup toolchain install nightly --component rust-src" >&2
    exit 77
}
[ $# -gt 0 ] || set -- thread address
# An older gcc lacks what newer compilers call.
export CC=${CC:-$(command -v clang-19 || command -v clang || echo cc)}
echo 'int main(void) { return 0; }' | "$CC" -fsanitize=address,undefined -x c - -o /dev/null 2>/dev/null || {
    echo "$CC has no sanitizers: on Debian they are in libclang-rt-19-dev" >&2
    exit 77
}
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
# A cache that no memory holds is asked for, and has to be refused.
export TSAN_OPTIONS="halt_on_error=1:allocator_may_return_null=1" ASAN_OPTIONS="allocator_may_return_null=1"
for sanitizer in "$@"; do
    # The test in C is compiled with the same one: what it links has a runtime of the sanitizer once.
    case $sanitizer in
    thread) of_c=thread ;;
    address) of_c=address,undefined ;;
    *)
        echo "no sanitizer is called $sanitizer here: want thread or address" >&2
        exit 2
        ;;
    esac
    check() {
        echo "== $sanitizer: $*"
        RUSTFLAGS="-Zsanitizer=$sanitizer -Cforce-frame-pointers" QAT_C_SANITIZERS=$of_c \
            cargo +nightly test --release -Zbuild-std --target "$host" --target-dir "target/sanitizers/$sanitizer" "$@"
    }
    check -p qat-infer --lib -- cpu:: generate:: files::
    check -p qat-capi --lib --test c
done
