#!/usr/bin/env bash
# The experiment of docs/results.md from nothing: texts and tokenizer, teachers, learning rates and what else helps, students, scores, table and pictures.
#
#   scripts/experiment.sh FOLDER [STEP…]
#
# FOLDER holds the texts: books/*.txt and prose/*.txt (books, a document each), tinystories_train.txt (stories, <|endoftext|> between them), and, not
# trained on, prose_valid/*.txt, tinystories_valid.txt and wiki.test.raw. Steps: prepare teachers tune refine students table; without any, all of them. What is
# there already is not done again, so that a broken run goes on by the same command. Everything lies in runs/experiment.
#
#   QAT=target/release/qat   the program (built with the feature of the device)
#   DEVICE=auto              auto, cpu, metal or cuda
#   JOBS=3                   trainings at a time
#   GPUS=2                   NVIDIA GPUs that they are spread over [the first alone]
#   SCORERS=4 THREADS=1      scorings at a time, beside the trainings, and the threads of each
#   SEEDS=1,2,3              of the students
#   TUNING_STEPS=200         steps of the runs that choose learning rates [as many as a student's]
#   SETS="train.steps=20 …"  changes every recipe, for a trial
#   PYTHON=python3           needs tokenizers for the step prepare, matplotlib for table
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 2; }
export QAT=${QAT:-target/release/qat}
[ -x "$QAT" ] || { echo "error: $QAT is not there: cargo build --release (on an NVIDIA GPU with --features cuda), or name it with QAT=" >&2; exit 2; }
exec "${PYTHON:-python3}" scripts/experiment.py "$@"
