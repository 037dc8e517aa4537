#!/usr/bin/env bash
# The Swift package on Linux: built over libqatc.a and tested with a packed model made of the quickstart's teacher.
#
#   scripts/test-swift.sh
#
#   QAT=target/release/qat   a program that is built already
#
# What only Apple's systems have (heat, limits of memory, the GPU) is left out here. Exit code 77: there is no Swift on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v swift >/dev/null || { echo "test-swift: no swift in PATH (Debian: apt-get install swiftlang swiftlang-dev)" >&2; exit 77; }

built=${CARGO_TARGET_DIR:-target}/release
QAT=${QAT:-$built/qat}
if command -v cargo >/dev/null; then
  cargo build --release -p qat -p qat-capi
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$QAT" export data/teacher --format qat --weights int4-g32 --scales mse --out "$scratch/model"
cat >"$scratch/model/chat_template.jinja" <<'JINJA'
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
JINJA
QAT_MODEL="$scratch/model" swift test --package-path swift --scratch-path "$scratch/build" -Xlinker "-L$PWD/$built"
