#!/usr/bin/env bash
# Type-checks and lints the Apple side from any machine: the whole workspace for macOS, the runtime and its C interface for iOS.
#
#   scripts/check-apple.sh               clippy with -D warnings for aarch64-apple-darwin, a check of qat-infer and qat-capi for aarch64-apple-ios
#   scripts/check-apple.sh --self-test   plants an error inside cfg(target_os = "macos") of a copy, and fails unless it is found
#
# Nothing is linked or run: what the compiler knows of Metal's interfaces is what is checked.
#
# Exit code 77: the targets' standard library can't be had here, and nothing was checked. It needs rustup, or a toolchain that has
# them already.
set -euo pipefail
cd "$(dirname "$0")/.."

mac=aarch64-apple-darwin
phone=aarch64-apple-ios

for target in $mac $phone; do
  if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    rustup target add $target || {
      echo "check-apple: no standard library for $target; rustup target add $target brings it" >&2
      exit 77
    }
  fi
done

case ${1-} in
  "")
    cargo clippy --release --target $mac --workspace --all-targets -- -D warnings
    cargo check --release --target $phone -p qat-infer -p qat-capi
    ;;
  --self-test)
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    git ls-files -z | xargs -0 cp --parents -t "$copy"
    for crate in infer train; do
      cp "$crate/src/lib.rs" "$copy/$crate/src/lib.rs"
      printf '\n#[cfg(target_os = "macos")]\nconst PLANTED: u32 = "not a number";\n' >>"$copy/$crate/src/lib.rs"
      target_dir=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
      if (cd "$copy" && CARGO_TARGET_DIR=$target_dir cargo check --release --target $mac -p "qat-$crate") >"$copy/out" 2>&1; then
        echo "check-apple: an error planted in $crate was not found" >&2
        exit 1
      fi
      grep -q 'E0308' "$copy/out" || { echo "check-apple: $crate failed, but not of what was planted:" >&2; cat "$copy/out" >&2; exit 1; }
      echo "an error planted in $crate is found"
      cp "$crate/src/lib.rs" "$copy/$crate/src/lib.rs"
    done
    ;;
  *) echo "check-apple: $1 is not known; see the head of the script" >&2; exit 2 ;;
esac
