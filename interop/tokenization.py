"""Texts as the runtimes' own tokenizers read them, from what an export says of the tokenizer.

Knows no weights. What is right: the ids of ../shared's vectors where there are any, and those of the model's tokenizer.json,
which qat uses.
"""

import json
import unicodedata

from tokenizers import Tokenizer

from models import SHARED

VECTORS = SHARED / "data" / "tokenizers" / "vectors"
# The vectors of a tokenizer, by its folder.
VECTOR_NAMES = {"gpt2": "gpt-2", "llama2": "llama-spm", "qwen": "qwen2"}
# Where pre-tokenizers differ: case, contractions, digits, white space at every place, scripts, emoji joined of several.
TEXTS = [
    "The small model runs on the phone.",
    "Count: 1, 23, 456 and 7890!",
    "It's  spaced\n\n\tand naïve café ☕ 日本",
    "SENSORS DON'T LIE, we'll see 3.14",
    "   leading, trailing   ",
    "\n\n\n a \t b\r\n",
    "x=y[1]+{'k': \"v\"}; // !!!",
    "🚀 (normal) 😶‍🌫️ (joined) ✅",
    "e\u0301 is not é, ﬁ is no fi",
    "Привет, мир! العربية हिन्दी 한국어 ไทย",
]


def vectors(name):
    """Texts and ids of llama.cpp's vectors for the tokenizer `name`; none where there are none."""
    base = VECTORS / VECTOR_NAMES.get(name, "none")
    if not base.with_suffix(".inp").is_file():
        return []
    texts = base.with_suffix(".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(id) for id in line.split()] for line in base.with_suffix(".out").read_text().split("\n")]
    return list(zip(texts, ids[: len(texts)], strict=True))


def expectations(name, folder):
    """Texts and the ids that they have, for the model `name` in `folder`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    texts = [*TEXTS, *(text for text, _ in vectors("gpt2"))]
    texts += [f"{one}user\nhi{other} {one}" for one, other in zip(special, special[1:] + special[:1])]
    own = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    return vectors(name) + own


def known(runtime, folder, text):
    """Whether the runtime has no means to read this text as the model's tokenizer does, whatever an export tells it."""
    steps = json.loads((folder / "tokenizer.json").read_text())
    if runtime not in ("llama.cpp", "onnxruntime"):
        return False
    # Neither has normal forms of Unicode.
    if '"NFC"' in json.dumps(steps["normalizer"]) and unicodedata.normalize("NFC", text) != text:
        return True
    # To onnxruntime-genai a digit is decimal; to the step Digits of tokenizer.json, a half is one too.
    individual = '"Digits"' in json.dumps(steps["pre_tokenizer"])
    return runtime == "onnxruntime" and individual and any(c.isnumeric() and not c.isdecimal() for c in text)


def mismatches(encode, expected):
    """What `encode` reads differently: (text, wanted ids, found ids)."""
    found = ((text, ids, encode(text)) for text, ids in expected)
    return [(text, ids, other) for text, ids, other in found if list(ids) != list(other)]
