"""Writes seeds/: small files of every kind that is parsed, and the shapes of published holes in such parsers.

    make_seeds.py QAT      needs pyarrow, for the seed in Parquet

The seeds are in the tree; this is how they came about.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"
SEPARATOR = b"\0--\0"
SHAPE = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": 0,
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 0, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
    "normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL,
    "model": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": False,
        "vocab": {"<|end|>": 0} | {chr(97 + i): 1 + i for i in range(26)} | {"Ġ": 27, "Ċ": 28, "it": 29, "at": 30, "Ġa": 31},
        "merges": ["i t", "a t", "Ġ a"],
    },
}


def put(target, name, content):
    path = SEEDS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def hostile_safetensors():
    """Lying lengths, overlaps, gaps, products and sums that overflow, a name twice, deep nesting."""
    put("safetensors", "good", safetensors({"a": tensor([2], 0, 8), "b": tensor([1, 2], 8, 16)}, bytes(16)))
    put("safetensors", "sub-byte", safetensors({"a": tensor([3], 0, 1, "F4")}, bytes(1)))
    put("safetensors", "header-longer-than-file", struct.pack("<Q", 99_999_999) + b"{}")
    put("safetensors", "header-of-2-64", struct.pack("<Q", 2**64 - 1) + b"{}")
    put("safetensors", "overlap", safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)))
    put("safetensors", "gap", safetensors({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)))
    put("safetensors", "product-overflows", safetensors({"a": tensor([2**32, 2**32], 0, 0)}))
    put("safetensors", "offsets-overflow", safetensors({"a": tensor([1], 2**64 - 4, 2**64 - 1)}, bytes(4)))
    put("safetensors", "twice", safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)))
    put("safetensors", "deep", safetensors(b'{"__metadata__":' + b"[" * 300 + b"]" * 300 + b"}"))


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(values=(), tensors=(), data=b"", version=3, counts=None):
    """A container of (key, type, content) and (name, dims, type, offset)."""
    count = counts or (len(tensors), len(values))
    out = b"GGUF" + struct.pack("<IQQ", version, *count)
    for key, kind, content in values:
        out += string(key) + struct.pack("<I", kind) + content
    for name, dims, kind, offset in tensors:
        out += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % 32) + data


def hostile_gguf():
    """The classes of CVE-2024-21802, CVE-2025-53630, CVE-2026-27940, CVE-2026-33298, CVE-2026-7482, CVE-2025-66960, candle#3533."""
    architecture = ("general.architecture", 8, string("llama"))
    put("gguf", "empty", gguf([architecture]))
    put("gguf", "one-tensor", gguf([architecture], [("a", [32], 0, 0)], bytes(128)))
    put("gguf", "counts-of-2-64", gguf(counts=(2**64 - 1, 2**64 - 1)))
    put("gguf", "key-of-2-63", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63))
    put("gguf", "array-of-2-61", gguf([("a", 9, struct.pack("<IQ", 10, 2**61))]))
    put("gguf", "array-of-arrays", gguf([("a", 9, struct.pack("<IQ", 9, 1) * 200)]))
    put("gguf", "dims-overflow", gguf([architecture], [("a", [2**32, 2**32], 0, 0)]))
    put("gguf", "bytes-overflow", gguf([architecture], [("a", [2**62], 0, 0)]))
    put("gguf", "dims-lie", gguf([architecture], [("a", [1 << 20], 0, 0)], bytes(32)))
    put("gguf", "offsets-overflow", gguf([architecture], [("a", [8], 0, 2**64 - 32), ("b", [8], 0, 0)], bytes(64)))
    put("gguf", "padding-overflows", gguf([("general.alignment", 4, struct.pack("<I", 2**32 - 1))], [("a", [8], 0, 0)], bytes(64)))
    put("gguf", "alignment-0", gguf([("general.alignment", 4, struct.pack("<I", 0))], [("a", [8], 0, 0)], bytes(64)))
    put("gguf", "overlap", gguf([architecture], [("a", [16], 0, 0), ("b", [16], 0, 32)], bytes(96)))
    put("gguf", "five-dims", gguf([architecture], [("a", [1] * 5, 0, 0)], bytes(32)))
    put("gguf", "type-99", gguf([architecture], [("a", [32], 99, 0)], bytes(128)))
    put("gguf", "half-a-block", gguf([architecture], [("a", [33], 2, 0)], bytes(64)))


def models(qat):
    """A model of one layer: packed, and as others read it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "shape.json").write_text(json.dumps(SHAPE))
        run = lambda *args: subprocess.run([qat, *map(str, args)], check=True, stdout=subprocess.DEVNULL)
        run("init", "--shape", folder / "shape.json", "--format", "int4-g32", "--out", folder / "bare")
        run("init", "--shape", folder / "shape.json", "--format", "float", "--out", folder / "float")
        (folder / "float" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        run("export", folder / "float", "--format", "qat", "--weights", "int4-g32", "--out", folder / "packed")
        run("export", folder / "packed", "--format", "gguf", "--out", folder / "gguf")
        run("export", folder / "packed", "--format", "mlx", "--out", folder / "mlx")
        for name in ("config.json", "manifest.json", "model.safetensors"):
            put("model", name, (folder / "bare" / name).read_bytes())
        for name in ("config.json", "model.safetensors"):
            put("mlx-model", name, (folder / "mlx" / name).read_bytes())
        packed = (folder / "bare" / "manifest.json").read_bytes()
        put("packed", "manifest", packed)
        put("packed", "both", packed + SEPARATOR + (folder / "bare" / "model.safetensors").read_bytes())
        put("mlx", "config", (folder / "mlx" / "config.json").read_bytes())
        put("mlx", "tensors", SEPARATOR + (folder / "mlx" / "model.safetensors").read_bytes())
        for target in ("gguf", "gguf_tokenizer"):
            put(target, "model", next((folder / "gguf").glob("*.gguf")).read_bytes())


def texts():
    """Everything that is text."""
    put("config", "llama", json.dumps(SHAPE))
    put("config", "llama3", json.dumps(SHAPE | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}}))
    put("config", "qwen3", json.dumps(SHAPE | {"model_type": "qwen3", "head_dim": 64, "eos_token_id": [0, 1]}))
    put("config", "huge", json.dumps(SHAPE | {"hidden_size": 2**63, "num_hidden_layers": 2**32}))
    put("tokenizer", "bpe", json.dumps(TOKENIZER))
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]], "byte_fallback": False}
    put("tokenizer", "unigram", json.dumps(TOKENIZER | {"model": unigram, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}}))
    put("tokenizer", "template", json.dumps(TOKENIZER | {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}}}))
    put("tokenizer", "id-of-2-32", json.dumps(TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": {"a": 2**32 - 1}, "merges": []}}))
    for recipe in sorted((SEEDS.parent.parent / "configs").glob("*.toml")):
        put("recipe", recipe.stem, recipe.read_text())
    put("jsonl", "lines", '{"text": "One."}\n{"text": null}\n{"text": "Zwei \\u00fc \\ud83d\\ude80"}\n')
    put("jsonl", "deep", '{"text": ' + "[" * 200 + "]" * 200 + "}\n")
    put("jsonl", "text", "One.<|endoftext|>Two.\n\nThree.<|endoftext|>")
    put("chat_template", "chatml", "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    put("chat_template", "calls", "{%- set ns = namespace(n=0) -%}{%- for m in messages[::-1] -%}{%- if m.role == 'user' and not m.content.startswith('<') -%}{%- set ns.n = ns.n + loop.index0 -%}{%- endif -%}{%- endfor -%}{{ ns.n }}{{ messages | tojson }}{{ raise_exception('no') if ns.n > 9 }}")
    # CVE-2024-34359 and CVE-2026-5760: out of the sandbox by attributes; and loops without end.
    put("chat_template", "attributes", "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    put("chat_template", "loops", "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}")
    put("chat_template", "signs", "{%} x %}{% generation %}y{% endgeneration %}")
    put("chat_template", "macro", "{% macro f(n) %}{{ n }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}")


def tokens():
    """A token file of four ids in two bytes each."""
    ids = struct.pack("<4H", 1, 2, 3, 4)
    header = b"QATTOKEN" + struct.pack("<II5Q", 1, 2, 300, 4, 1, 0, 9) + bytes(32)
    digest = hashlib.sha256(hashlib.sha256(ids).digest()).digest()
    put("tokens", "four", header + hashlib.sha256(header + digest).digest() + ids)
    put("tokens", "tokens-of-2-63", header[:24] + struct.pack("<Q", 2**63) + header[32:] + bytes(32) + ids)


def teacher_cache():
    """Four records of two tokens each, behind what the cache was made of or without it."""
    record = lambda first, second, rest: struct.pack("<2H2ef", first, second, 0.0, -1.5, rest)
    records = record(1, 5, -2.0) + record(0, 7, -80.0) + record(6, 7, 0.0) + record(2, 3, -0.25)
    put("teacher_cache", "records", SEPARATOR + records)
    identity = {"version": 1, "teacher": "t", "tokens": "k", "ctx": 2, "vocab": 8, "top_k": 2, "temperature": 1.0, "windows": 2}
    put("teacher_cache", "both", json.dumps(identity).encode() + SEPARATOR + records)
    put("teacher_cache", "another", json.dumps(identity | {"top_k": 2**63}).encode() + SEPARATOR + records)


def parquet():
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["One.", None, "Zwei ü", "One."]})
    for codec in ("none", "snappy", "gzip", "lz4", "brotli"):
        with tempfile.NamedTemporaryFile() as file:
            pyarrow.parquet.write_table(table, file.name, compression=codec, store_schema=False)
            put("parquet", codec, Path(file.name).read_bytes())


def main():
    # What fuzzing found (found-…) stays.
    for path in SEEDS.rglob("*"):
        if path.is_file() and not path.name.startswith("found-"):
            path.unlink()
    models(sys.argv[1])
    hostile_safetensors()
    hostile_gguf()
    texts()
    tokens()
    teacher_cache()
    parquet()


main()
