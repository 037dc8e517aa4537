"""Runs the experiment of docs/results.md; scripts/experiment.sh says how it is called.

A job is a call of qat whose result is a file; a result that is there is not made again. Trainings and scorings have a pool each, so that
packed students are scored on the processor while the next ones are trained on the GPU.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

QAT = os.environ.get("QAT", "target/release/qat")
DEVICE = os.environ.get("DEVICE", "auto")
JOBS = int(os.environ.get("JOBS", "3"))
SCORERS = int(os.environ.get("SCORERS", "4"))
THREADS = os.environ.get("THREADS", "1")
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1,2,3").split(",")]
SETS = os.environ.get("SETS", "").split()
# A place for each training that may run, named after its GPU where there are several.
PLACES = SimpleQueue()
for place in range(JOBS):
    PLACES.put(str(place % int(os.environ["GPUS"])) if "GPUS" in os.environ else None)

RECIPES = Path("configs/experiment")
WORK = Path("runs/experiment")
TEACHER = WORK / "teachers/small/hf"
VOCABULARY = 8192
CTX = 512
TEXTS = ["in-domain", "out-of-domain"]
# Bytes of each that are scored: about 25,000 tokens, 48 windows.
SCORED = {"in-domain": [("prose_valid/*.txt", 64_000), ("tinystories_valid.txt", 40_000)], "out-of-domain": [("wiki.test.raw", 84_000)]}
# Unseen text from which nothing is scored: learning rates are chosen on it.
VALID = [("prose_valid/*.txt", -120_000), ("tinystories_valid.txt", -60_000)]

# What stands in the recipe's place: QAT with KL from the teacher is the recipe as it is.
METHODS = {
    "kl": [],
    "ce": ["loss.forward_kl=0.0", "loss.cross_entropy=1.0"],
    "large": ["teacher.model=runs/experiment/teachers/large/hf"],
    "dwq": ["quant.learn=scales", "quant.scales=gptq", "loss.temperature=2.0"],
}
CONTROL = METHODS["ce"]
ROUNDINGS = ["absmax", "mse", "gptq"]
FORMATS = {
    "int4-g32": 4, "int4-affine-g128": 4, "int3-affine-g32": 3, "int3-affine-g128": 3,
    "int2-affine-g32": 2, "int2-affine-g128": 2, "ternary-g64": 1, "ternary-tensor": 1,
}  # fmt: skip
# What is tried for each: where grids start, and learning rates, of the weights or of the scales where they alone are trained.
STARTS = ["mse", "gptq"]
# Of scales that are trained with the weights, in all of these runs.
SCALE_RATE = "optim.scale_lr=1e-3"
RATES = {4: [1e-5, 2e-5, 5e-5, 1e-4], 3: [5e-5, 1e-4, 2e-4], 2: [2e-4, 5e-4], 1: [2e-4, 5e-4]}
SCALE_RATES = {4: [1e-3, 3e-3], 3: [1e-3, 3e-3], 2: [3e-3, 1e-2], 1: [1e-2, 3e-2]}
# A teacher that knows more has more to teach: students of the larger one want higher rates.
LARGE_RATES = {4: [5e-5, 1e-4, 2e-4], 3: [1e-4, 2e-4, 4e-4], 2: [2e-4, 5e-4], 1: [2e-4, 5e-4]}
CONTROL_RATES = [3e-6, 1e-5, 3e-5]
# More that is tried with KL from the teacher at these bits, on all their grids, beside what was chosen.
REFINED = [4, 3]
REFINEMENTS = {
    "nothing": [], "temperature": ["loss.temperature=2.0"], "lower-scale-rate": ["optim.scale_lr=3e-4"], "higher-scale-rate": ["optim.scale_lr=3e-3"],
    "wsd": ["optim.schedule=wsd", "optim.decay_share=0.6"], "hidden": ["loss.hidden=0.5"], "relations": ["loss.relations=0.5"],
    "muon": ["optim.kind=muon", "optim.muon_lr=5e-4"], "batch": ["train.batch=32", "train.steps=600"], "freeze": ["quant.freeze_after=6"],
    "warmup": ["quant.warmup_steps=200"],
}  # fmt: skip
# A refinement is taken if it lowers the KL by more than this share, on the mean of the grids.
WORTH_IT = 0.02
# As long as what follows, unless said otherwise: a short run wants a higher rate.
TUNING_SETS = [f"train.steps={os.environ['TUNING_STEPS']}"] if "TUNING_STEPS" in os.environ else []


class Failed(Exception):
    """A call of qat that did not do what it should."""


def main():
    folder, steps = Path(sys.argv[1]), sys.argv[2:] or ["prepare", "teachers", "tune", "refine", "students", "table"]
    doing = {"prepare": lambda: prepare(folder), "teachers": teachers, "tune": tune, "refine": refine, "students": students, "table": table}
    if unknown := [step for step in steps if step not in doing]:
        sys.exit(f"error: there is no step {unknown[0]!r}; there are {', '.join(doing)}")
    for step in steps:
        began = time.time()
        try:
            doing[step]()
        except Failed as failed:
            sys.exit(f"error: {failed}")
        say(f"{step}: {time.time() - began:.0f} s")


def say(what):
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


# --- texts and tokenizer


def slices(folder, parts):
    """The beginnings (or, below zero, the ends) of files, so many bytes of all that a pattern names, cut at line ends."""
    texts = []
    for pattern, count in parts:
        files = sorted(folder.glob(pattern))
        if not files:
            sys.exit(f"error: {folder / pattern}: there is no such text")
        for file in files:
            lines, size = [], abs(count) / len(files)
            all_lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            for line in all_lines if count > 0 else reversed(all_lines):
                if (size := size - len(line.encode())) < 0:
                    break
                lines.append(line)
            texts.append("".join(lines if count > 0 else reversed(lines)))
    return "\n".join(texts)


def prepare(folder):
    train = WORK / "text/train"
    tokenizer = WORK / "tokenizer/tokenizer.json"
    if not train.is_dir():
        files = [f for p in ["books/*.txt", "prose/*.txt", "tinystories_train.txt"] for f in sorted(folder.glob(p))]
        if not files:
            sys.exit(f"error: {folder} holds none of books/*.txt, prose/*.txt, tinystories_train.txt")
        for name, parts in {**SCORED, "valid": VALID}.items():
            write(WORK / f"text/{name}.txt", slices(folder, parts))
        partial = train.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, partial / file.name)
        partial.rename(train)
    if not tokenizer.is_file():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        made.train([str(file) for file in sorted(train.glob("*.txt"))], trainer)
        write(tokenizer, made.to_str(pretty=True))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


# --- calls of qat


def qat(*args, log, **env):
    """Calls it with more of an environment; a variable that is None is left as it is. Returns the seconds it took."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **{name: value for name, value in env.items() if value is not None}}
    began = time.time()
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([QAT, *map(str, args)], stdout=file, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        tail = "\n  ".join(log.read_text(encoding="utf-8").strip().splitlines()[-3:])
        raise Failed(f"qat {' '.join(map(str, args))} ended with {done.returncode}:\n  {tail}")
    return time.time() - began


def train(recipe, variant, sets, out):
    """A run under out/variant: continued where it was broken off, left alone where its export is there."""
    run = out / variant
    if not (run / ("hf" if recipe == "teachers.toml" else "qat") / "config.json").is_file():
        args = [arg for change in [*sets, *SETS] for arg in ("--set", change)]
        command = ["train", RECIPES / recipe, "--variant", variant, "--device", DEVICE, "--resume", "--out", out, *args]
        place = PLACES.get()
        try:
            seconds = qat(*command, log=WORK / "logs" / f"{'-'.join(run.relative_to(WORK).parts)}.log", CUDA_VISIBLE_DEVICES=place)
        finally:
            PLACES.put(place)
        say(f"{run.relative_to(WORK)}: {seconds:.0f} s, validation {last_validation(run):.4f}")
    return run


def last_validation(run, what="valid_cross_entropy"):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[what] for line in lines if what in line][-1]


def scored(name, text):
    """Where the report of a model on a text is."""
    return WORK / f"scores/{name}-{text}.json"


def score(model, name):
    for text in TEXTS:
        out = scored(name, text)
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            against = ["--against", TEACHER] if model != TEACHER else []
            data = WORK / f"text/{text}.txt"
            command = ["eval", model, "--data", data, "--ctx", CTX, "--device", "cpu", "--json", out, *against]
            qat(*command, log=WORK / f"logs/score-{name}.log", RAYON_NUM_THREADS=THREADS)


def is_scored(name):
    return all(scored(name, text).is_file() for text in TEXTS)


def wait(futures: list[Future]):
    for future in futures:
        future.result()


# --- steps


def teachers():
    with ThreadPoolExecutor(JOBS) as pool:
        wait([pool.submit(train, "teachers.toml", size, [], WORK / "teachers") for size in ["large", "small"]])


def trials():
    """What is tuned: name, variant, changes, and the candidates, more changes each, by what they say."""

    def said(*candidates):
        return {" ".join(candidate): candidate for candidate in candidates}

    for bits, rates in RATES.items():
        variant = next(f for f, b in FORMATS.items() if b == bits)
        starts = said(*([f"quant.scales={start}", SCALE_RATE, f"optim.lr={rate}"] for start in STARTS for rate in rates))
        for method in ["kl", "ce"]:
            yield f"{method}-{bits}", variant, METHODS[method], starts
        yield f"large-{bits}", variant, METHODS["large"], said(*([SCALE_RATE, f"optim.lr={rate}"] for rate in LARGE_RATES[bits]))
        yield f"dwq-{bits}", variant, METHODS["dwq"], said(*([f"optim.scale_lr={rate}"] for rate in SCALE_RATES[bits]))
    yield "float", "float", CONTROL, said(*([f"optim.lr={rate}"] for rate in CONTROL_RATES))


def tried(step, trials):
    """Trains what trials (name, variant, changes, candidates) name, with a seed that no student has; losses on unseen text by name and candidate."""
    with ThreadPoolExecutor(JOBS) as pool:
        runs = {}
        for name, variant, changes, candidates in trials:
            for label, candidate in candidates.items():
                sets = [*changes, *TUNING_SETS, *candidate, "seed=1000"]
                out = WORK / step / name / label.replace(" ", ",")
                runs[name, label] = pool.submit(train, "students.toml", variant, sets, out)
        wait(list(runs.values()))
    losses = {}
    for (name, label), run in runs.items():
        what = "valid_cross_entropy" if name.startswith(("ce", "large", "float")) else "valid_kl"
        losses.setdefault(name, {})[label] = last_validation(run.result(), what)
    return losses


def tune():
    """Chooses rates and starts."""
    chosen = WORK / "chosen.json"
    if chosen.is_file():
        return
    losses = tried("tune", trials())
    write(WORK / "tuning.json", json.dumps(losses, indent=2))
    write(chosen, json.dumps({name: min(by, key=by.get) for name, by in losses.items()}, indent=2))
    shutil.rmtree(WORK / "tune")


def refine():
    """Tries more changes to KL from the teacher."""
    refined = WORK / "refinements.json"
    if refined.is_file():
        return
    chosen = json.loads((WORK / "chosen.json").read_text())
    trials = [(grid, grid, chosen[f"kl-{bits}"].split(), REFINEMENTS) for grid, bits in FORMATS.items() if bits in REFINED]
    write(refined, json.dumps(tried("refine", trials), indent=2))
    shutil.rmtree(WORK / "refine")


def choices():
    """The changes that were chosen for each method and number of bits, refinements that help among them."""
    chosen = json.loads((WORK / "chosen.json").read_text())
    refined = WORK / "refinements.json"
    kl = json.loads(refined.read_text()) if refined.is_file() else {}
    for bits in REFINED if kl else []:
        grids = [grid for grid in kl if FORMATS[grid] == bits]
        ratio = {name: sum(kl[grid][name] / kl[grid]["nothing"] for grid in grids) / len(grids) for name in REFINEMENTS}
        best = min(ratio, key=ratio.get)
        if ratio[best] < 1 - WORTH_IT:
            chosen[f"kl-{bits}"] = " ".join([chosen[f"kl-{bits}"], *REFINEMENTS[best]])
    return chosen


def students():
    chosen = choices()
    with ThreadPoolExecutor(JOBS) as trainers, ThreadPoolExecutor(SCORERS) as scorers:
        scoring = [scorers.submit(score, TEACHER, "teacher")]
        for format in FORMATS:
            for rounding in ROUNDINGS:
                scoring.append(scorers.submit(rounded, format, rounding))
        training = []
        for seed in SEEDS:
            training.append(trainers.submit(student, "control", "float", chosen["float"], seed, scorers))
            for format, bits in FORMATS.items():
                for method in METHODS:
                    training.append(trainers.submit(student, method, format, chosen[f"{method}-{bits}"], seed, scorers))
        scoring += [training.result() for training in training]
        wait([future for future in scoring if future])


def rounded(format, rounding):
    name = f"{rounding}-{format}"
    if is_scored(name):
        return
    out = WORK / f"rounded/{name}"
    text = ["--calibration", *sorted(WORK.glob("text/train/*.txt"))] if rounding == "gptq" else []
    command = ["export", TEACHER, "--format", "qat", "--weights", format, "--scales", rounding, "--out", out, *text]
    qat(*command, log=WORK / f"logs/{name}.log", RAYON_NUM_THREADS=THREADS)
    score(out, name)


def student(method, format, changes, seed, scorers):
    """Trains one, and hands it on to be scored."""
    name = f"{method}-{format}-seed{seed}"
    if is_scored(name):
        return None
    out = WORK / f"students/{method}-seed{seed}"
    run = train("students.toml", format, [*METHODS.get(method, CONTROL), *changes.split(), f"seed={seed}"], out)
    curve = WORK / f"curves/{name}.jsonl"
    curve.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "log.jsonl", curve)

    def judge():
        score(run / "qat", name)
        # Checkpoints of a hundred runs fill a disk; the packed model is what was scored.
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        shutil.rmtree(run / "student", ignore_errors=True)

    return scorers.submit(judge)


def table():
    subprocess.run([sys.executable, "scripts/experiment_table.py", str(WORK)], check=True)


if __name__ == "__main__":
    main()
