"""Table and pictures of the experiment from the scores of a run: experiment.md, two SVGs, and scores.jsonl with the windows of every model.

    experiment_table.py runs/experiment [FOLDER]          into docs/results unless told otherwise
    experiment_table.py FOLDER/scores.jsonl [FOLDER]      the same from the windows alone, but for the loss curves

Every number is made of the means of windows that `qat eval --json` wrote. Intervals (95 %) are percentiles of a bootstrap that draws windows and seeds
with replacement; windows are the same for all models, so that differences between models are paired.
"""

import json
import math
import os
import random
import sys
from pathlib import Path

from experiment import FORMATS, METHODS, ROUNDINGS, TEXTS

DRAWS = 2000
LABELS = {
    "absmax": "rounded, absmax", "mse": "rounded, mse", "gptq": "rounded, GPTQ", "dwq": "scales only (DWQ)",
    "ce": "QAT, cross entropy", "kl": "**QAT, KL from the teacher**", "large": "QAT, KL from a larger teacher",
}  # fmt: skip
ORDER = [*ROUNDINGS, "dwq", "ce", "kl", "large"]


class Scores:
    """Reports by method, format and text: one for a rounding, one a seed for what was trained."""

    def __init__(self, source):
        self.reports, self.lines = {}, []
        if source.is_file():
            for line in source.read_text(encoding="utf-8").splitlines():
                self.add(json.loads(line))
            return
        for path in sorted((source / "scores").glob("*.json")):
            text = next(text for text in TEXTS if path.stem.endswith(f"-{text}"))
            report = json.loads(path.read_text(encoding="utf-8"))
            line = {"model": path.stem.removesuffix(f"-{text}"), "text": text}
            line |= {what: report[what] for what in ["bits_per_weight", "file_bytes"]}
            for what in ["nll", "kl"]:
                line[what] = [round(window[what], 6) for window in report["per_window"] if window.get(what) is not None]
            self.add(line)

    def add(self, line):
        self.lines.append(json.dumps(line))
        self.reports.setdefault((line["model"].partition("-seed")[0], line["text"]), []).append(line)

    def of(self, name, text, what):
        """`what` of each window, a list for each seed."""
        return [report[what] for report in self.reports[name, text]]

    def one(self, name, text):
        return self.reports[name, text][0]

    def __contains__(self, key):
        return key in self.reports


class Bootstrap:
    """The same draws of windows for every model of a text; draws of seeds for each count of them."""

    def __init__(self, windows, seed=1):
        drawn = random.Random(seed)
        self.windows = [[drawn.randrange(windows) for _ in range(windows)] for _ in range(DRAWS)]
        self.random = drawn

    def means(self, by_seed):
        """The mean, and that of every draw."""
        seeds, windows = len(by_seed), len(by_seed[0])
        pooled = [sum(seed[w] for seed in by_seed) / seeds for w in range(windows)]
        drawn = []
        for draw in self.windows:
            rows = [by_seed[self.random.randrange(seeds)] for _ in range(seeds)] if seeds > 1 else by_seed
            drawn.append(sum(row[w] for row in rows for w in draw) / (len(rows) * windows))
        return sum(pooled) / windows, drawn


def interval(drawn):
    drawn = sorted(drawn)
    return drawn[int(0.025 * len(drawn))], drawn[int(0.975 * len(drawn)) - 1]


def deviation(drawn):
    mean = sum(drawn) / len(drawn)
    return math.sqrt(sum((value - mean) ** 2 for value in drawn) / (len(drawn) - 1))


class Row:
    """A method on a format, on one text."""

    def __init__(self, scores, bootstrap, method, format, text):
        name = f"{method}-{format}"
        report = scores.one(name, text)
        self.bits, self.bytes = report["bits_per_weight"], report["file_bytes"]
        self.seeds = len(scores.reports[name, text])
        self.nll, self.nll_drawn = bootstrap.means(scores.of(name, text, "nll"))
        self.kl, self.kl_drawn = bootstrap.means(scores.of(name, text, "kl"))

    def recovered(self, worst, control):
        """Share of the loss between control and rounding that is won back, with its interval; none where there is little to win."""
        gap = [w - c for w, c in zip(worst.nll_drawn, control[1])]
        if worst.nll - control[0] < 2 * deviation(gap):
            return None
        share = [1 - (own - c) / max(g, 1e-9) for own, c, g in zip(self.nll_drawn, control[1], gap)]
        return 1 - (self.nll - control[0]) / (worst.nll - control[0]), interval(share)


def table(scores, text):
    windows = len(scores.of("teacher", text, "nll")[0])
    bootstrap = Bootstrap(windows)
    teacher = bootstrap.means(scores.of("teacher", text, "nll"))
    control = bootstrap.means(scores.of("control-float", text, "nll"))
    low, high = (math.exp(value) for value in interval(control[1]))
    lines = [
        f"Teacher (float): perplexity {math.exp(teacher[0]):.2f}. Float control, same extra tokens: {math.exp(control[0]):.2f} [{low:.2f}, {high:.2f}].",
        "",
        "| format | method | seeds | bits/weight | perplexity | KL to the teacher | of the gap won back |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    rows = {}
    for format in FORMATS:
        for method in ORDER:
            if (f"{method}-{format}", text) not in scores:
                continue
            row = rows[method, format] = Row(scores, bootstrap, method, format, text)
            ppl = [math.exp(value) for value in interval(row.nll_drawn)]
            kl = interval(row.kl_drawn)
            recovered = row.recovered(rows["absmax", format], control) if method != "absmax" else None
            share = "" if recovered is None else f"{100 * recovered[0]:.0f} % [{100 * recovered[1][0]:.0f}, {100 * recovered[1][1]:.0f}]"
            lines.append(
                f"| {format} | {LABELS[method]} | {row.seeds if method not in ROUNDINGS else ''} | {row.bits:.2f} | {number(math.exp(row.nll))} [{number(ppl[0])}, {number(ppl[1])}] "
                f"| {row.kl:.4f} [{kl[0]:.4f}, {kl[1]:.4f}] | {share} |"
            )
    return "\n".join(lines), rows


def number(value):
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def pictures(rows, source, out):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "qat", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    shown = {"absmax": ("#999999", "rounded, absmax"), "gptq": ("#c08000", "rounded, GPTQ"), "dwq": ("#7a5cc0", "scales only"), "ce": ("#3a8a3a", "QAT, cross entropy"), "kl": ("#c0303a", "QAT, KL"), "large": ("#2a6fc0", "QAT, larger teacher")}  # fmt: skip
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, text in zip(axes, TEXTS):
        for method, (colour, label) in shown.items():
            points = sorted((rows[text][method, f].bits, rows[text][method, f].kl, *interval(rows[text][method, f].kl_drawn)) for f in FORMATS if (method, f) in rows[text])
            x, y = [p[0] for p in points], [p[1] for p in points]
            axis.errorbar(x, y, [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]], color=colour, fmt="o", ms=3, lw=1)
            best = {bits: kl for bits, kl, *_ in reversed(points)}
            axis.plot(list(best), list(best.values()), color=colour, label=label, lw=1)
        for format in FORMATS:
            above = max(rows[text][method, format].kl for method in shown)
            axis.annotate(format, (rows[text]["kl", format].bits, above), (2, 5), textcoords="offset points", rotation=35, fontsize=6, color="#777777")
        axis.set(yscale="log", xlabel="bits per weight, embeddings and scales included")
        axis.set_title(text, pad=22)
    axes[0].set_ylabel("KL to the float teacher, nats a token")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, out / "quality-against-size.svg")
    if source.is_file():
        return

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3))
    for axis, format in zip(axes, ["int4-g32", "int2-affine-g32", "ternary-g64"]):
        for method in ["dwq", "kl", "large"]:
            lines = [json.loads(line) for line in (source / f"curves/{method}-{format}-seed1.jsonl").read_text(encoding="utf-8").splitlines()]
            steps = [(line["step"], line["terms"]["forward_kl"]) for line in lines if "terms" in line]
            axis.plot(*zip(*steps), color=shown[method][0], label=shown[method][1], lw=1)
        axis.set(yscale="log", xlabel="step of 8,192 tokens", title=format)
    axes[0].set_ylabel("KL to its teacher, training text")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, out / "loss-curves.svg")


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    source = Path(sys.argv[1])
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/results")
    scores = Scores(source)
    out.mkdir(parents=True, exist_ok=True)
    parts, rows = [], {}
    for text in TEXTS:
        shown, rows[text] = table(scores, text)
        parts.append(f"## {text.capitalize()}\n\n{shown}\n")
    results = os.path.relpath("docs/results.md", out)
    head = f"# Every method on every grid\n\nMade by scripts/experiment.sh; [results.md]({results}) says what was done and what the columns are.\n\n"
    (out / "experiment.md").write_text(head + "\n".join(parts), encoding="utf-8")
    (out / "scores.jsonl").write_text("".join(line + "\n" for line in scores.lines), encoding="utf-8")
    pictures(rows, source, out)


if __name__ == "__main__":
    main()
