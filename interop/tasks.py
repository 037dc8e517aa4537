"""The tasks of `qat eval --tasks` through lm-evaluation-harness on the same float model: every log-likelihood, every answer.

Knows no exports. lm-eval's own task definitions are used as they are; only their data is replaced by rows of this file and, where
they are, of ../shared/data/eval.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from models import SHARED

# f32 sums of some hundred terms per token in another order, some tens of tokens long.
BOUND = 1e-3
ITEMS = 12
# lm-eval's definitions, and whether they score the split called test.
DEFINITIONS = {
    "lambada_openai": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
TESTED = {"lambada_openai", "arc_easy", "arc_challenge", "openbookqa"}
NORMED = {"hellaswag", "arc_easy", "arc_challenge", "piqa", "openbookqa"}
# Rows as the datasets have them, with what prompts stumble over: white space at ends, marks of headings, letters that aren't ASCII, choices that
# begin alike, answers of one character.
SCIENCE = [
    {"question": "Which melts first?", "choices": {"text": ["ice", "ice cream", "iron"], "label": ["A", "B", "C"]}, "answerKey": "A"},
    {"question": "2 + 2 = ", "choices": {"text": ["4", "5", "6", "22"], "label": ["1", "2", "3", "4"]}, "answerKey": "1"},
    {"question": "Wo wächst ein Baum? ☕", "choices": {"text": ["im Wald", "im Café", "日本"], "label": ["A", "B", "C"]}, "answerKey": "A"},
]
ROWS = {
    "lambada_openai": [
        {"text": "She looked at the moon and then at the other moon"},
        {"text": "“No,” he said,  twice.\n\nThe naïve café closed its doors"},
        {"text": "One"},
    ],
    "hellaswag": [
        {"activity_label": "Home", "ctx_a": "[header] How to paint [title] Clean the wall.", "ctx_b": "then", "label": "1",
         "endings": ["[step] eat  it.", "you paint [substeps] it.", "you paint it twice.", "no"]},
        {"activity_label": "Sailing", "ctx_a": "A man sails. ", "ctx_b": "the Boat OF the man", "label": "0",
         "endings": ["sinks.", "flies.", "sings", "é"]},
    ],
    "arc_easy": SCIENCE,
    "arc_challenge": SCIENCE[::-1],
    "piqa": [
        {"goal": "open a jar ", "sol1": "Turn the lid.", "sol2": "Turn the lid twice, then back.", "label": 0},
        {"goal": "dry shoes\n", "sol1": "sun", "sol2": "rain", "label": 0},
    ],
    "winogrande": [
        {"sentence": "The cup did not fit the box because the _ was too big.", "option1": "cup", "option2": "box", "answer": "1"},
        {"sentence": "Ann thanked Eve, for _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ],
    "boolq": [
        {"passage": "Iron rusts -- it does. ", "question": "does iron rust", "label": 1},
        {"passage": "Fish swim.", "question": "can fish fly", "label": 0},
    ],
    "openbookqa": [
        {"question_stem": "A fox eats ", "choices": {"text": ["mice", "stones", "mice and stones", "m"], "label": ["A", "B", "C", "D"]},
         "answerKey": "A"},
    ],
}


@dataclass
class Found:
    """How far two runs of a task are from each other."""

    error: float
    answers: int
    items: int
    greedy: int
    choices: int

    @property
    def holds(self):
        return self.error <= BOUND and self.answers == self.items and self.greedy == self.choices


def published(task, row):
    """A row of ../shared/data/eval in the layout of the dataset that it was made of; none where it doesn't tell."""
    if task == "lambada_openai":
        return {"text": f"{row['context']} {row['continuation']}"}
    if task == "winogrande":
        one, other = row["context_options"]
        begin = len(os.path.commonprefix([one, other]))
        sentence = f"{one[:begin]}_ {row['continuation']}"
        return {"sentence": sentence, "option1": one[begin:], "option2": other[begin:], "answer": str(row["gold"] + 1)}
    query, choices, gold = row["query"], row["choices"], row["gold"]
    lettered = {"choices": {"text": choices, "label": list("ABCDE"[: len(choices)])}, "answerKey": "ABCDE"[gold]}
    if task == "hellaswag":
        label, _, context = query.partition(": ")
        return {"activity_label": label, "ctx_a": context, "ctx_b": "", "endings": choices, "label": str(gold)}
    if task == "piqa":
        return {"goal": query.removeprefix("Question: ").removesuffix("\n"), "sol1": choices[0], "sol2": choices[1], "label": gold}
    if task == "boolq":
        passage, _, question = query.removeprefix("Passage: ").rpartition("\nQuestion: ")
        return {"passage": passage, "question": question.removesuffix("?"), "label": gold}
    if task == "openbookqa":
        return {"question_stem": query} | lettered
    return {"question": query.removeprefix("Question: ")} | lettered


def rows(task):
    """Rows for qat in both layouts: (name, rows for qat, the same for lm-eval)."""
    yield "own rows", ROWS[task], ROWS[task]
    path = SHARED / "data" / "eval" / f"{'openbook_qa' if task == 'openbookqa' else task}.jsonl"
    if path.is_file():
        ours = [json.loads(line) for line in path.read_text().splitlines()[:ITEMS]]
        yield f"{ITEMS} rows of ../shared", ours, [published(task, row) for row in ours]


def write(folder, task, lines):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def theirs(model, folder, data):
    """lm-eval's samples and results: task → (samples in the order of the file, results); `data`: task → file."""
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM

    definitions = Path(lm_eval.__file__).parent / "tasks"
    for task, path in data.items():
        split = "test" if task in TESTED else "validation"
        # JSON is YAML.
        definition = {"include": str(definitions / DEFINITIONS[task]), "task": f"own_{task}", "tag": None, "dataset_path": "json",
                      "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(path)}}, "training_split": None}
        other = "validation" if task in TESTED else "test"
        (folder / f"own_{task}.yaml").write_text(json.dumps(definition | {f"{other}_split": None, f"{split}_split": split}))
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1)
    names = [f"own_{task}" for task in data]
    # Its bars and remarks.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        out = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=1000)
    samples = {task: sorted(of, key=lambda sample: sample["doc_id"]) for task, of in out["samples"].items()}
    return {task: (samples[f"own_{task}"], out["results"][f"own_{task}"]) for task in data}


def ours(qat, model, folder, tasks):
    """qat's items and scores: task → (items in the order of the file, score)."""
    report, items = folder / "report.json", folder / "items.jsonl"
    qat.run("eval", model, "--tasks", ",".join(tasks), "--task-data", folder, "--device", "cpu", "--json", report, "--items", items)
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    scores = json.loads(report.read_text())["tasks"]
    return {task: ([line for line in lines if line["task"] == task], scores[task]) for task in tasks}


def compare(task, mine, other):
    """Items and scores of qat beside samples and results of lm-eval."""
    (items, score), (samples, results) = mine, other
    assert len(items) == len(samples), f"{len(items)} items, {len(samples)} samples"
    found = Found(0.0, 0, len(items), 0, 0)
    for item, sample in zip(items, samples, strict=True):
        logs, greedy = zip(*(response[0] for response in sample["resps"]))
        found.error = max([found.error, *(abs(float(a) - b) for a, b in zip(logs, item["log_likelihoods"], strict=True))])
        found.choices += len(logs)
        # A list of responses may hold them as text.
        found.greedy += sum((str(a) == "True") == b for a, b in zip(greedy, item["greedy"], strict=True))
        same = float(sample["acc"]) == item["acc"]
        if task in NORMED:
            same = same and float(sample["acc_norm"]) == item["acc_norm"]
        found.answers += same
    for key in ("acc", "acc_norm") if task in NORMED else ("acc",):
        for ending, own in (("", ""), ("_stderr", "_se")):
            wanted = results[f"{key}{ending},none"]
            if wanted != "N/A" and abs(wanted - score[key + own]) > 1e-9:
                found.error = max(found.error, abs(wanted - score[key + own]), 1.0)
    if task == "lambada_openai":
        found.error = max(found.error, abs(results["perplexity,none"] / score["perplexity"] - 1))
    return found


def check(qat, model, folder):
    """Yields (rows, task, how far qat is from lm-eval)."""
    for which, name in enumerate(("own rows", f"{ITEMS} rows of ../shared")):
        data, mine = {}, folder / f"rows-{which}"
        for task in ROWS:
            for label, qat_rows, harness_rows in rows(task):
                if label == name:
                    write(mine, task, qat_rows)
                    data[task] = write(folder / f"published-{which}", task, harness_rows)
        if not data:
            print("SKIPPED: rows of ../shared/data/eval, which are not there", flush=True)
            continue
        found, wanted = ours(qat, model, mine, list(data)), theirs(model, folder, data)
        for task in data:
            yield name, task, compare(task, found[task], wanted[task])
