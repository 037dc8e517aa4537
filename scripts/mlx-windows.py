#!/usr/bin/env python3
"""The text on which mlx-lm's `perplexity.py` scores a model, as a file for `qat eval --ctx 512`. See docs/real-models.md.

    pip install transformers datasets numpy
    python3 scripts/mlx-windows.py models/Qwen3-0.6B-Base tulu.txt

It draws the same conversations in the same order (NumPy's global generator, seed 123), puts them through the chat template, joins their
tokens, and keeps the first 256 × 512. A text is written only if its tokens are exactly these.
"""
import argparse

import numpy
from datasets import load_dataset
from transformers import AutoTokenizer

asked = argparse.ArgumentParser()
asked.add_argument("model", help="folder with the tokenizer and its chat template")
asked.add_argument("out", help="the text to write")
asked.add_argument("--data", default="allenai/tulu-3-sft-mixture", help="a data set of conversations, or a .jsonl of them")
asked.add_argument("--windows", type=int, default=256)
asked.add_argument("--ctx", type=int, default=512)
asked.add_argument("--seed", type=int, default=123)
asked = asked.parse_args()

tokenizer = AutoTokenizer.from_pretrained(asked.model)
if asked.data.endswith(".jsonl"):
    rows = load_dataset("json", data_files=asked.data, split="train")
else:
    rows = load_dataset(asked.data, split="train")

numpy.random.seed(asked.seed)
order = numpy.random.permutation(len(rows)).tolist()
wanted, ids, texts = asked.windows * asked.ctx, [], []
for index in order:
    if len(ids) >= wanted:
        break
    text = tokenizer.apply_chat_template(rows[index]["messages"], tokenize=False)
    texts.append(text)
    ids += tokenizer(text, add_special_tokens=False)["input_ids"]
ids = ids[: min(wanted, len(ids) // asked.ctx * asked.ctx)]

# The characters that these tokens stand for.
joined = "".join(texts)
found = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True)
joined = joined[: found["offset_mapping"][len(ids) - 1][1]]
again = tokenizer(joined, add_special_tokens=False)["input_ids"]
if again != ids:
    at = next((i for i, pair in enumerate(zip(again, ids)) if pair[0] != pair[1]), min(len(again), len(ids)))
    raise SystemExit(f"the joined text has other tokens from number {at} on: the tokenizer joins conversations; nothing was written")
with open(asked.out, "w", encoding="utf-8", newline="") as out:
    out.write(joined)
print(f"wrote {asked.out}: {len(ids)} tokens, {len(ids) // asked.ctx} windows of {asked.ctx}")
