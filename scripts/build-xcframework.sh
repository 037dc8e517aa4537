#!/usr/bin/env bash
# The runtime for apps: swift/CQat.xcframework out of libqatc.a for iPhones, their simulator and Macs with Apple Silicon. On a Mac with Xcode.
#
#   scripts/build-xcframework.sh
#
# Then add the folder swift/ to an app as a local package. Exit code 77: there is no xcodebuild on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v xcodebuild >/dev/null || { echo "build-xcframework: no xcodebuild; it comes with Xcode, on a Mac" >&2; exit 77; }

headers=$(mktemp -d)
trap 'rm -rf "$headers"' EXIT
cp capi/include/qat.h "$headers/"
printf 'module CQat {\n    header "qat.h"\n    export *\n}\n' >"$headers/module.modulemap"

built=${CARGO_TARGET_DIR:-target}
libraries=()
for target in aarch64-apple-ios aarch64-apple-ios-sim aarch64-apple-darwin; do
  rustup target add "$target"
  cargo rustc --release -p qat-capi --lib --crate-type staticlib --target "$target"
  libraries+=(-library "$built/$target/release/libqatc.a" -headers "$headers")
done
rm -rf swift/CQat.xcframework
xcodebuild -create-xcframework "${libraries[@]}" -output swift/CQat.xcframework
