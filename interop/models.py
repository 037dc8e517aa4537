"""Tiny models to export: random weights in the shapes of models/, and the fixtures of ../shared where they are.

Knows no runtime. The weights are conditioned so that logits have a spread of a few units: with flat predictions everything
would agree. What stays float is a number that bf16 and f16 both hold, so that no target rounds it.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
TEACHER = ROOT / "data" / "teacher"
SHAPES = Path(__file__).resolve().parent / "models"
FIXTURES = ["llama_tied", "llama_untied", "qwen2", "qwen3", "qwen3_tied", "lfm2"]
# Tokenizers of published models, by their folder in ../shared, and what their own files say beside tokenizer.json.
TOKENIZERS = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama2": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "qwen": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>"},
    "smollm2": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
}


class Qat:
    """The binary, and what it says."""

    def __init__(self, path):
        self.path = path

    def run(self, *args):
        """Runs a command; an error of its own ends everything but `export`'s caller, who may catch it."""
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"qat {' '.join(map(str, args))}\n{done.stderr.strip()}")
        return done.stdout

    def logits(self, model, ids, tokens, activations, out):
        """Ids and logits of reading `ids` and going on greedily for `tokens`."""
        listed = ",".join(map(str, ids))
        self.run("logits", model, "--ids", listed, "--tokens", tokens, "--activations", activations, "--device", "cpu", "--out", out)
        tensors = load_file(out)
        return tensors["ids"].tolist(), tensors["logits"]


def conditioned(name, shape, rng):
    """Values of a tensor that leave activations of the size of one and logits of a few units."""
    noise = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        values = 1 + 0.2 * noise
    elif name.endswith(".bias"):
        values = 0.3 * noise
    elif "embed_tokens" in name or name == "lm_head.weight":
        values = 0.2 * noise
    else:
        values = noise * 1.3 / np.sqrt(shape[-1])
    # Eight bits of mantissa, an exponent that f16 has: exact in bf16 and f16. Matrices get rounded anyway.
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 256) / 256, np.maximum(exponent, -6)).astype(np.float32)


def condition(model, seed):
    """Replaces the weights of the float directory `model`."""
    path = model / "model.safetensors"
    with safe_open(path, "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    rng = np.random.default_rng(seed)
    save_file({name: conditioned(name, shape, rng) for name, shape in shapes.items()}, path, {"format": "pt"})


def random_model(qat, config, tokenizer, tokenizer_config, out, seed):
    """A float directory of the shape `config` (a path), with a tokenizer."""
    qat.run("init", "--shape", config, "--format", "float", "--seed", seed, "--out", out)
    condition(out, seed)
    shutil.copy(tokenizer, out / "tokenizer.json")
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2))
    return out


def architectures(qat, folder):
    """Every model that is exported: name → float directory."""
    models = {}
    config = json.loads((TEACHER / "tokenizer_config.json").read_text())
    for seed, shape in enumerate(sorted(SHAPES.glob("*.json"))):
        models[shape.stem] = random_model(qat, shape, TEACHER / "tokenizer.json", config, folder / shape.stem, seed)
    for name in FIXTURES:
        if (SHARED / "fixtures" / name).is_dir():
            models[f"fixture {name}"] = SHARED / "fixtures" / name
        else:
            print(f"SKIPPED: fixture {name}: ../shared/fixtures is not there", flush=True)
    return models


def tokenizer_models(qat, folder):
    """A model of one narrow layer for each published tokenizer: name → float directory."""
    models = {}
    for name, config in TOKENIZERS.items():
        tokenizer = SHARED / "data" / "tokenizers" / name / "tokenizer.json"
        if not tokenizer.is_file():
            print(f"SKIPPED: tokenizer {name}: ../shared/data/tokenizers is not there", flush=True)
            continue
        parsed = json.loads(tokenizer.read_text())
        ids = [*parsed["model"]["vocab"].values(), *(token["id"] for token in parsed["added_tokens"])]
        shape = json.loads((SHAPES / "llama.json").read_text())
        shape |= {"vocab_size": max(ids) + 1, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "eos_token_id": None}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(shape))
        models[name] = random_model(qat, path, tokenizer, config, folder / name, 0)
    return models
