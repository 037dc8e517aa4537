#!/usr/bin/env bash
# Trains as two processes that mpirun started, beside one: the same bits where sums have the same order, the same curve elsewhere, one voice, an end
# for all when one is killed, and a run that goes on alone.
#
#   scripts/test-mpi.sh [FOLDER]        builds with --features mpi; leaves its runs in FOLDER [a temporary one, removed]
#
# Exit code 77: Open MPI can't be had here, and nothing was tested. Needs, as Debian and Ubuntu call them, openmpi-bin, libopenmpi-dev and
# libclang-dev; root gets what is missing installed.
set -euo pipefail
cd "$(dirname "$0")/.."

packages="openmpi-bin libopenmpi-dev libclang-dev"
if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "test-mpi: mpirun and mpicc are missing; on Debian: apt-get install $packages" >&2
    exit 77
  fi
  give_up() { echo "test-mpi: $packages can't be installed" >&2; exit 77; }
  apt-get update -qq || give_up
  # shellcheck disable=SC2086 # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null || give_up
fi

cargo build --release -p qat --features mpi
qat=${CARGO_TARGET_DIR:-target}/release/qat
out=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$out"' EXIT
mkdir -p "$out"
export QAT_CACHE=$out/cache RAYON_NUM_THREADS=1
# As many processes as asked for, wherever this runs; MPI refuses root and crowded machines otherwise.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
mpi() { mpirun -np "$1" --bind-to none "${@:2}"; }
fail() { echo "test-mpi: $*" >&2; exit 1; }

recipe="train configs/quickstart.toml --variant int4-g32 --plain --set train.steps=12 --set train.log_every=1 --set data.ctx=128
        --set train.checkpoint_every=4 --set data.train=[\"stories:seed=2,bytes=200000\"] --set train.valid_windows=4
        --set eval.require=[] --set eval.baselines=[] --set eval.data=[\"stories:seed=3,bytes=20000\"]"
at=int4-g32
checkpoint=checkpoints/step-00000012
losses() { sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$1/$at/log.jsonl"; }

echo "== the same bits as one process that adds up the same rows"
bits="--set optim.clip=0"
# shellcheck disable=SC2086 # lists of words
"$qat" $recipe $bits --set train.batch=4 --set train.accumulate=2 --out "$out/parts" >/dev/null 2>"$out/parts.txt"
# shellcheck disable=SC2086
mpi 2 "$qat" $recipe $bits --out "$out/bits" >/dev/null 2>"$out/bits.txt"
for file in model.safetensors optimizer.safetensors; do
  cmp "$out/parts/$at/$checkpoint/$file" "$out/bits/$at/$checkpoint/$file" || fail "$file differs"
done
cmp "$out/parts/$at/qat/model.safetensors" "$out/bits/$at/qat/model.safetensors" || fail "the packed files differ"
[ "$(losses "$out/parts")" = "$(losses "$out/bits")" ] || fail "the losses differ"
[ "$(grep -c '^int4-g32: step 12/12' "$out/bits.txt")" = 1 ] || fail "not one voice: $(cat "$out/bits.txt")"

echo "== the same curve as one process with the same batch"
# shellcheck disable=SC2086
"$qat" $recipe --out "$out/one" >/dev/null 2>&1
# shellcheck disable=SC2086
mpi 2 "$qat" $recipe --out "$out/two" >/dev/null 2>&1
paste <(losses "$out/one") <(losses "$out/two") |
  awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 1e-4) bad = 1; print "  one " $1 "  two " $2 } END { exit bad }' ||
  fail "the curves part"

echo "== conversations, tokenized by both: the file that one makes"
seq 3000 | awk '{ print "{\"prompt\": \"Who is number " $1 "?\", \"response\": \"A cat with " 7 * $1 " friends.\"}" }' >"$out/chat.jsonl"
chat="$recipe --set data.train=[\"$out/chat.jsonl\"] --set data.format=chat --set data.template=plain --set train.steps=2"
# shellcheck disable=SC2086
QAT_CACHE=$out/cache-of-one "$qat" $chat --out "$out/chat-one" >/dev/null 2>"$out/chat-one.txt"
# shellcheck disable=SC2086
QAT_CACHE=$out/cache-of-two mpi 2 "$qat" $chat --out "$out/chat-two" >/dev/null 2>"$out/chat-two.txt"
found=$(ls "$out/cache-of-one" "$out/cache-of-two" | grep -c '\.tokens$' || true)
[ "$found" = 2 ] || fail "want one file of tokens of each, found $found"
diff -r "$out/cache-of-one" "$out/cache-of-two" || fail "the tokens differ"
[ "$(grep -c ': 3000 conversations, ' "$out/chat-two.txt")" = 1 ] || fail "not one voice: $(cat "$out/chat-two.txt")"

echo "== one of two is killed: all end, the last checkpoint stays, and one process goes on"
long="$recipe --set train.steps=400 --set train.checkpoint_every=2 --set optim.schedule=constant"
set +e
# shellcheck disable=SC2086
mpi 2 "$qat" $long --out "$out/killed" 2>"$out/killed.txt" &
job=$!
for _ in $(seq 600); do
  [ -d "$out/killed/$at/checkpoints/step-00000004" ] && break
  sleep 0.1
done
# The second rank of this run, by what it was started with.
victim=
for process in /proc/[0-9]*; do
  said=$({ tr "\0" "\n" <"$process/environ"; } 2>/dev/null) || continue
  if grep -qx OMPI_COMM_WORLD_RANK=1 <<<"$said" && grep -qx "QAT_CACHE=$QAT_CACHE" <<<"$said"; then
    victim=${process#/proc/}
  fi
done
[ -n "$victim" ] || fail "the second rank was not found"
kill -9 "$victim"
wait "$job"
code=$?
set -e
[ $code != 0 ] || fail "the run went on with one of two"
newest=$(find "$out/killed/$at/checkpoints" -name 'step-*' | sort | tail -1)
[ -n "$newest" ] || fail "no checkpoint is left"
step=$((10#${newest##*-}))
# shellcheck disable=SC2086
"$qat" $long --out "$out/killed" --resume 2>"$out/resumed.txt" >/dev/null &
job=$!
for _ in $(seq 600); do
  grep -q "step $((step + 4))/" "$out/resumed.txt" && break
  sleep 0.1
done
kill -TERM "$job"
wait "$job" || true
grep -q "continuing after step $step" "$out/resumed.txt" || fail "it did not go on: $(cat "$out/resumed.txt")"
grep -q "stopped after step" "$out/resumed.txt" || fail "it did not stop: $(cat "$out/resumed.txt")"

echo "== what can't be is refused once, by name"
set +e
# shellcheck disable=SC2086
mpi 3 "$qat" $recipe --out "$out/uneven" 2>"$out/uneven.txt"
set -e
[ "$(grep -c 'train.batch = 8 is the batch of all ranks together' "$out/uneven.txt")" = 1 ] || fail "$(cat "$out/uneven.txt")"

echo "test-mpi: passed"
