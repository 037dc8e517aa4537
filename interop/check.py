"""Every supported architecture × format × target: is what the real runtime makes of an export what qat's own makes of it?

    check.py QAT WORK_FOLDER [PART…]      a PART chooses the cases that have it in their name, such as "gguf" or "qwen3"

Prints one table; exit code 1 if a row fails. The same run damages a copy of each kind of export, which must make its row fail. $JOBS models
are checked at a time, each by a process of its own [1].
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import comparison
import damage
import models
import tasks
import tokenization
from runtimes import ENCODERS, RUNTIMES

PROMPT = 32
GREEDY = 16
AFFINE = [f"int{bits}-affine-g{group}" for bits in (2, 3, 4, 8) for group in (32, 64, 128)]


@dataclass
class Target:
    """A format of `qat export`, who reads it, and what it holds."""

    name: str
    runtime: str
    formats: list
    embeddings: str = "int8-g32"
    activations: str = "float"
    options: tuple = ()
    # In f32 from the values in the file, and as users have it.
    modes: tuple = ("exact", "as shipped")
    # The variance of that rounding, beside that of 8-bit activations.
    noise: int = 1

    @property
    def label(self):
        return " ".join((self.name, *self.options))


TARGETS = [
    Target("hf", "transformers", ["int4-g32", "int3-affine-g64", "ternary-g256"], modes=("exact",)),
    Target("mlx", "mlx-lm", ["int4-g32", "int8-g32", "ternary-g64", "ternary-g256", "ternary-tensor", *AFFINE]),
    # On a processor MLX adds products of bf16 up in bf16: 1.9 % of noise in sums of 256 products, 2.5 % in sums of 512, where 8-bit
    # activations make 0.6 %.
    Target("mlx", "mlx-lm", [f"{affine}-bf16" for affine in AFFINE], "int8-affine-g64-bf16", noise=16),
    Target("gguf", "llama.cpp", ["int4-g32", "int8-g32", "ternary-g64", "ternary-g256"]),
    Target("gguf", "llama.cpp", ["ternary-g256"], options=("--tq1",)),
    Target("onnx", "onnxruntime", ["int4-g32", "int8-g32", "ternary-g64", "ternary-g256", "ternary-tensor"], modes=("exact",)),
    Target("ollama", "llama.cpp", ["int4-g32"], modes=("exact",)),
    Target("bitnet", "transformers", ["ternary-tensor"], "float", "int8", modes=("as shipped",)),
]

# Models that are asked what tasks ask: with attention alone, and with convolutions.
ASKED = ("llama", "fixture qwen3", "fixture lfm2")

# What a runtime, or a target, has no models of, by `model_type`; `qat export` refuses it.
LACKS = {"mlx-lm": ["bitnet"], "llama.cpp": ["bitnet"], "onnxruntime": ["lfm2", "phi3", "gemma3_text"], "bitnet": ["phi3", "gemma3_text"]}

# Whose arithmetic is not f32 where it computes exactly otherwise: llama.cpp looks GELU up in a table, of 11 bits on both sides.
COARSE = {"llama.cpp": ["gemma3_text"]}
TABLE = comparison.Bounds(comparison.EXACT_KL, 1e-2, exact=False)
# Who rounds more than products as shipped, by how much in variance: in bf16 MLX rounds Gemma's scaled embeddings and four norms a layer too, and the
# made model is so sure of its tokens that its KL jumps.
NOISY = {"mlx-lm": ["gemma3_text"]}
MORE = 16


def is_of(models, runtime, model):
    """Whether the model in the directory is one of those."""
    config = json.loads((model / "config.json").read_text())
    return config["model_type"] in models.get(runtime, [])


def opens(target, model):
    """Whether the target's runtime has models like that in the directory."""
    return not is_of(LACKS, target.runtime, model) and not is_of(LACKS, target.name, model)


def fits(format_, config):
    """Whether the rows of the model's matrices are whole blocks of the format."""
    group = next((int(part[1:]) for part in format_.split("-") if part[0] == "g"), 4)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rows = (config["hidden_size"], config["intermediate_size"], head * config["num_attention_heads"])
    return all(length % group == 0 for length in rows)


class Check:
    """What is found of one model: a binary, a folder to work in, and rows of the table."""

    def __init__(self, binary, folder, parts):
        self.qat, self.folder, self.parts = models.Qat(binary), folder, parts
        for part in ("packed", "export"):
            (folder / part).mkdir(parents=True)
        self.packed, self.references, self.rows = {}, {}, []

    def wants(self, *words):
        name = " ".join(words)
        return not self.parts or any(part in name for part in self.parts)

    def pack(self, name, model, format_, embeddings):
        """The packed model, made once."""
        key = (name, format_, embeddings)
        if key not in self.packed:
            out = self.folder / "packed" / "-".join(key).replace(" ", "-")
            self.qat.run("export", model, "--format", "qat", "--weights", format_, "--embeddings", embeddings, "--out", out)
            self.packed[key] = out
        return self.packed[key]

    def reference(self, packed, activations):
        """Ids, what qat's own runtime predicts after each, and what it predicts with activations rounded to 8 bits (or, if it rounds them,
        without); then short texts and what it predicts of them."""
        key = (packed, activations)
        if key not in self.references:
            vocab = json.loads((packed / "config.json").read_text())["vocab_size"]
            # Knuth's generator, so that every id is as likely.
            state, drawn = 7, []
            for _ in range(PROMPT + comparison.BEGINNINGS * comparison.ALIKE):
                state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
                drawn.append((state >> 33) % vocab)
            prompt, rest = drawn[:PROMPT], drawn[PROMPT:]
            out = self.folder / "logits.safetensors"
            ids, logits = self.qat.logits(packed, prompt, GREEDY, activations, out)
            _, other = self.qat.logits(packed, ids, 0, "float" if activations == "int8" else "int8", out)
            texts = [rest[at : at + comparison.ALIKE] for at in range(0, len(rest), comparison.ALIKE)]
            short = [self.qat.logits(packed, text, 0, activations, out) for text in texts if activations == "int8"]
            self.references[key] = (ids, logits, other, short)
        return self.references[key]

    def export(self, packed, target, out):
        self.qat.run("export", packed, "--format", target.name, *target.options, "--out", out)
        return out

    def agreement(self, folder, target, reference, mode, exact=comparison.EXACT, more=1):
        """How far the runtime that reads `folder` is from the reference; `exact` are its bounds where it computes in f32, `more` is what it
        rounds elsewhere beside the target's noise."""
        ids, logits, other, short = reference
        bounds = exact if mode == "exact" else comparison.noise(logits, other, more * target.noise)
        try:
            runtime = RUNTIMES[target.runtime](folder, mode == "exact")
            found = comparison.compare(ids, logits, runtime.logits(ids, PROMPT), PROMPT, bounds)
            if short and (problem := comparison.nearest([(want, runtime.logits(text, len(text))) for text, want in short])):
                found.problems.append(problem)
            return found
        except Exception as error:
            first = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
            return comparison.failed(ids, PROMPT, f"{type(error).__name__}: {first}")

    def add(self, what, how, found, holds=None):
        holds = found.holds if holds is None else holds
        numbers = (f"{found.kl:.1e}", f"{found.error:.1e}", f"{found.top1}/{found.tokens}", f"{found.greedy}/{found.written}")
        self.rows.append((*what, how, *numbers, "pass" if holds else "FAIL", "; ".join(found.problems)))
        print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)

    def fail(self, what, how, problem):
        self.rows.append((*what, how, "", "", "", "", "FAIL", problem))
        print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)

    def case(self, name, model, format_, target):
        """One model in one format for one target: in f32, and as users get it."""
        what = (name, format_, target.label)
        try:
            packed = self.pack(name, model, format_, target.embeddings)
            folder = self.export(packed, target, self.folder / "export" / "-".join(what).replace(" ", "-"))
            reference = self.reference(packed, target.activations)
        except RuntimeError as error:
            self.fail(what, target.runtime, str(error).splitlines()[-1][:200])
            return
        exact = TABLE if is_of(COARSE, target.runtime, model) else comparison.EXACT
        more = MORE if is_of(NOISY, target.runtime, model) else 1
        for mode in target.modes:
            self.add(what, f"{target.runtime}, {mode}", self.agreement(folder, target, reference, mode, exact, more))
        if name == "llama" and format_ in target.formats[:1] + target.formats[3:4]:
            self.damage(what, folder, target, reference)
        shutil.rmtree(folder)

    def damage(self, what, folder, target, reference):
        """Damaged copies of the export must fail."""
        for kind in damage.KINDS:
            copy = folder.with_name("damaged")
            shutil.copytree(folder, copy)
            try:
                damage.damage(copy, target.name, kind)
                found = self.agreement(copy, target, reference, target.modes[0])
                # A reader that refuses the file notices too, but then the numbers have noticed nothing.
                self.add(what, f"damaged: {kind}", found, not found.holds and found.kl != float("inf"))
            except Exception as error:
                self.fail(what, f"damaged: {kind}", f"could not be damaged: {error!r}"[:160])
            shutil.rmtree(copy)

    def tokenize(self, name, model):
        """Texts through every runtime's own tokenizer."""
        for target in TARGETS:
            first = next(other for other in TARGETS if other.name == target.name)
            if target is not first or target.name in ("bitnet", "ollama") or not self.wants(name, "tokenizer", target.name):
                continue
            if not opens(target, model):
                continue
            what = (name, "tokenizer", target.label)
            try:
                packed = self.pack(name, model, "int4-g32", target.embeddings)
                folder = self.export(packed, target, self.folder / "export" / "tokenizer")
            except RuntimeError as error:
                self.fail(what, target.runtime, str(error).splitlines()[-1][:200])
                continue
            try:
                expected = tokenization.expectations(name, model)
                differs = tokenization.mismatches(ENCODERS[target.runtime](folder), expected)
                wrong = [each for each in differs if not tokenization.known(target.runtime, model, each[0])]
                shown = "; ".join(f"{text!r}: {found} instead of {ids}" for text, ids, found in wrong[:1])
                excused = f", {len(differs) - len(wrong)} known" if len(differs) > len(wrong) else ""
                read = f"{len(expected) - len(differs)}/{len(expected)} texts{excused}"
                self.rows.append((*what, target.runtime, "", "", "", read, "FAIL" if wrong else "pass", shown[:200]))
                print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)
            except Exception as error:
                self.fail(what, target.runtime, f"{error!r}"[:200])
            shutil.rmtree(folder)

    def ask(self, name, model):
        """Tasks, and lm-eval's answers with the same float model."""
        folder = self.folder / "tasks" / name.replace(" ", "-")
        try:
            for rows, task, found in tasks.check(self.qat, model, folder):
                verdict = "pass" if found.holds else "FAIL"
                numbers = ("", f"{found.error:.1e}", f"{found.answers}/{found.items}", f"{found.greedy}/{found.choices}")
                self.rows.append((name, task, rows, "lm-eval", *numbers, verdict, ""))
                print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)
        except Exception as error:
            self.fail((name, "tasks", "eval"), "lm-eval", f"{error!r}"[:200])

    def run(self, name, model):
        """A model in every format for every target."""
        if name in ASKED and self.wants(name, "tasks", "lm-eval"):
            self.ask(name, model)
        config = json.loads((model / "config.json").read_text())
        for target in TARGETS:
            if not opens(target, model):
                continue
            # A fixture adds a shape and a tokenizer; what a format is, the models before it have told.
            for format_ in target.formats[:2] if name.startswith("fixture") else target.formats:
                if fits(format_, config) and self.wants(name, format_, target.label):
                    self.case(name, model, format_, target)


def rows_of(binary, folder, parts, name, model, is_whole):
    """The rows of a model; of one that isn't whole, those of its tokenizer."""
    check = Check(binary, folder / "work" / name.replace(" ", "-"), parts)
    if is_whole:
        check.run(name, model)
    if name == "llama" or name.startswith("fixture") or not is_whole:
        check.tokenize(name, model)
    return check.rows


def table(rows):
    header = ("model", "format", "target", "runtime", "max KL", "max error", "top-1", "greedy", "", "")
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header) - 1)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + "  " + row[-1])


def main():
    binary, folder, *parts = sys.argv[1:]
    folder, qat = Path(folder), models.Qat(binary)
    began = time.monotonic()
    all_models = [(name, model, True) for name, model in models.architectures(qat, folder).items()]
    all_models += [(name, model, False) for name, model in models.tokenizer_models(qat, folder).items()]
    # Runtimes compute on one thread each, and some don't survive a fork.
    spawned, jobs = multiprocessing.get_context("spawn"), int(os.environ.get("JOBS", 1))
    with ProcessPoolExecutor(min(jobs, len(all_models)), spawned) as pool:
        found = [pool.submit(rows_of, binary, folder, parts, *each) for each in all_models]
        rows = [row for each in found for row in each.result()]
    table(rows)
    failed = sum("FAIL" in row for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed or not rows else 0)


if __name__ == "__main__":
    main()
