#!/usr/bin/env python3
"""The paper's adaptation in miniature: what the shift, the annealed attention and the pretrained weights each give.

From a folder with a small causal GPT-2 and a text, four conditions are trained for the same number of steps on the
same data with several seeds, each validated on the same masks of the text's end:

  recipe      lacuna adapt: shift, attention annealed from causal to bidirectional
  no-shift    lacuna adapt --no-shift
  no-anneal   lacuna adapt --no-anneal
  scratch     lacuna pretrain: random weights in the same shape, with shift, bidirectional attention throughout

Then the logs are read, and docs/experiments/ gets adaptation.svg, adaptation.json (every number) and a table between
the markers of adaptation.md. A run that is finished is not run again; one that was stopped goes on from its last
checkpoint. Ctrl-C stops all of them after the step at hand.

matplotlib is looked for in the interpreter that runs this, else in target/plot-venv, which is made on first use.

examples:
  tools/adaptation.py MODEL_DIR text.txt
  tools/adaptation.py MODEL_DIR text.txt --steps 2000 --batch 32 --jobs 2 --threads 1
  tools/adaptation.py MODEL_DIR text.txt --dry-run
  tools/adaptation.py MODEL_DIR text.txt --report-only        from the logs that are there
  tools/adaptation.py --plot docs/experiments/adaptation.json the figure again
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare_torch import ROOT, find_lacuna, processor

VENV = ROOT / "target/plot-venv"
# What lacuna pack --held-out calls its second file.
HELD_OUT = "{stem}-held-out{suffix}"
HELD_OUT_PERCENT = 5
MARKERS = "<!-- adaptation: begin -->", "<!-- adaptation: end -->"
CONFIDENCE = 0.95
PARTS = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}

# Colours of Okabe and Ito, which colour-blind readers tell apart; styles and marks tell the lines apart without.
CONDITIONS = [
    {"key": "recipe", "label": "shift + annealing", "command": "adapt", "flags": [], "anneals": True,
     "paper": 1, "colour": "#0072B2", "line": "-", "mark": "o"},
    {"key": "no-anneal", "label": "no annealing", "command": "adapt", "flags": ["--no-anneal"], "anneals": False,
     "paper": 2, "colour": "#D55E00", "line": (0, (6, 2)), "mark": "s"},
    {"key": "no-shift", "label": "no shift", "command": "adapt", "flags": ["--no-shift"], "anneals": True,
     "paper": 3, "colour": "#007A5E", "line": (0, (6, 2, 1, 2)), "mark": "^"},
    {"key": "scratch", "label": "from scratch", "command": "pretrain", "flags": [], "anneals": False,
     "paper": 4, "colour": "#555555", "line": (0, (1, 1.3)), "mark": "D"},
]  # fmt: skip


# ---------------------------------------------------------------- running


def read_log(path):
    """Validations of a log, {step: numbers}, and the last step in it; an unfinished last line does not count."""
    validations, last = {}, 0
    try:
        text = path.read_text()
    except FileNotFoundError:
        return validations, last
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}, line {number}: expected a step or a validation as JSON: {error}") from None
        last = max(last, step)
        if "validation" in entry:
            validations[step] = entry["validation"]
    return validations, last


class Run:
    """One training run: a condition and a seed."""

    def __init__(self, args, condition, seed):
        self.args, self.condition, self.seed = args, condition, seed
        self.name = f"{condition['key']}-seed{seed}"
        self.folder = args.work / "runs" / self.name
        self.process = None

    def done(self):
        return self.args.steps in read_log(self.folder / "log.jsonl")[0]

    def command(self):
        """What starts the run, or goes on with it."""
        a, c = self.args, self.condition
        common = ["--output", self.folder, "--threads", a.threads, "--quiet"]
        if list(self.folder.glob("checkpoints/step-*")):
            return [a.lacuna, c["command"], *common, "--resume"]
        flags = ["--model", a.model, "--data", a.tokens, "--validation", a.held_out, "--batch", a.batch]
        flags += ["--length", a.length, "--steps", a.steps, "--lr", a.lr, "--warmup", a.warmup, "--seed", self.seed]
        flags += ["--validate-every", a.validate_every, "--validation-sequences", a.validation_sequences]
        flags += ["--validation-draws", a.validation_draws, "--save-every", a.save_every]
        if c["anneals"]:
            flags += ["--anneal-steps", a.anneal_steps]
        return [a.lacuna, c["command"], *flags, *c["flags"], *common]

    def run(self, stopped):
        """Runs it to its end; words about what went wrong, or nothing."""
        if stopped.is_set() or self.done():
            return None
        command = [str(word) for word in self.command()]
        if "--resume" not in command and self.folder.exists():
            shutil.rmtree(self.folder)  # it has no checkpoint: nothing to go on from
        if stopped.is_set():
            return None
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors = self.process.stderr.read()
        code = self.process.wait()
        self.process = None
        if code == 0 and not self.done():
            return f"{self.name}: it ended without a validation at step {self.args.steps}"
        if code != 0 and not stopped.is_set():
            return f"{self.name}: {shlex.join(command)}\nfailed with {code}: {errors.strip()[-2000:]}"
        return None


def status(runs, steps):
    """How far the runs are, as one line."""
    finished, words = 0, []
    for run in runs:
        validations, last = read_log(run.folder / "log.jsonl")
        if steps in validations:
            finished += 1
        elif run.process is not None:
            nelbo = f", held-out {validations[max(validations)]['nelbo']:.3f}" if validations else ""
            words.append(f"{run.name} {last}/{steps}{nelbo}")
    return f"{finished} of {len(runs)} done" + (": " if words else "") + "; ".join(words)


def pack(args):
    """Token files of the text, unless they are there."""
    if args.tokens.exists() and args.held_out.exists():
        return
    command = [args.lacuna, "pack", "--tokenizer", args.model, "--output", args.tokens, "--held-out", HELD_OUT_PERCENT]
    subprocess.run([str(word) for word in [*command, "--quiet", args.text]], check=True)
    if not args.held_out.exists():
        raise SystemExit(f"lacuna pack did not write {args.held_out}")


def settings(args):
    """What decides the numbers."""
    keys = ["steps", "batch", "length", "lr", "warmup", "anneal_steps", "validate_every", "validation_sequences"]
    return {key: getattr(args, key) for key in [*keys, "validation_draws"]} | {"held_out_percent": HELD_OUT_PERCENT}


def check_settings(args):
    """Fails where the folder's runs were started with other settings."""
    path = args.work / "settings.json"
    ours = settings(args) | {"model": str(Path(args.model).resolve()), "text": str(Path(args.text).resolve())}
    if path.exists():
        theirs = json.loads(path.read_text())
        differ = [f"{k}: {theirs.get(k)} there, {ours.get(k)} asked for" for k in ours if theirs.get(k) != ours[k]]
        if differ:
            raise SystemExit(f"{args.work} has runs with other settings ({'; '.join(differ)}): name another with --work")
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ours, indent=1) + "\n")


def run_all(args, runs):
    """Runs what is not finished, a few at a time."""
    waiting = [run for run in runs if not run.done()]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are there; {args.jobs} at a time", file=sys.stderr)
    stopped, failures = threading.Event(), []

    def one(run):
        words = run.run(stopped)
        if words:
            stopped.set()
            failures.append(words)

    said, started = "", time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(one, run) for run in waiting]
        try:
            while not all(future.done() for future in futures):
                time.sleep(2)
                line = status(runs, args.steps)
                if line != said and time.monotonic() - started >= args.progress_every:
                    print(line, file=sys.stderr, flush=True)
                    said, started = line, time.monotonic()
        except KeyboardInterrupt:
            # The runs are in this process group and got the signal too: they save and end.
            stopped.set()
            print("stopping; the same command goes on", file=sys.stderr, flush=True)
            for run in runs:
                if run.process is not None:
                    run.process.wait()
            raise SystemExit(130) from None
    for future in futures:
        future.result()
    if failures:
        raise SystemExit("\n".join(failures))


# ---------------------------------------------------------------- numbers


def student_t(probability, degrees):
    """The quantile of Student's t: bisection over Simpson's rule on its density."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)

    def below(x, parts=2000):
        h = x / parts
        density = [scale * (1 + (i * h) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(parts + 1)]
        return 0.5 + h / 3 * (density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2]))

    low, high = 0.0, 1.0
    while below(high) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2


def interval(values):
    """The mean and half the width of its Student-t interval over seeds; None for the latter with one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = student_t((1 + CONFIDENCE) / 2, len(values) - 1)
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def analyse(args, runs):
    """Every number of the experiment, from the logs."""
    conditions = []
    for condition in CONDITIONS:
        of = {}
        for run in runs:
            if run.condition is condition:
                validations, _ = read_log(run.folder / "log.jsonl")
                if args.steps not in validations:
                    raise SystemExit(f"{run.folder}: no validation at step {args.steps}: the run is not finished")
                bad = [s for s, v in validations.items() if not isinstance(v["nelbo"], (int, float)) or not math.isfinite(v["nelbo"])]
                if bad:
                    raise SystemExit(f"{run.folder}: the NELBO at step {bad[0]} is not finite")
                of[run.seed] = validations
        steps = sorted(set.intersection(*(set(v) for v in of.values())))
        curve = []
        for step in steps:
            values = [v[step]["nelbo"] for v in of.values()]
            mean, half = interval(values)
            error = statistics.fmean(v[step].get("standard_error") or 0.0 for v in of.values())
            curve.append({"step": step, "mean": mean, "half_interval": half, "standard_error": error,
                          "by_seed": dict(zip(of, values))})  # fmt: skip
        described = {key: condition[key] for key in ("key", "label", "command", "flags", "paper")}
        conditions.append(described | {"curve": curve, "unweighted_by_seed": {s: v[args.steps]["unweighted"] for s, v in of.items()}})
    at = {part: nearest([p["step"] for p in conditions[0]["curve"]], share * args.steps) for part, share in PARTS.items()}
    table = {c["key"]: {part: point(c, step) for part, step in at.items()} for c in conditions}
    differences = {}
    for condition in conditions[1:]:
        of = {}
        for part in at:
            theirs, ours = table[condition["key"]][part]["by_seed"], table["recipe"][part]["by_seed"]
            values = [theirs[seed] - ours[seed] for seed in ours]
            mean, half = interval(values)
            of[part] = {"mean": mean, "half_interval": half, "by_seed": dict(zip(ours, values))}
        differences[condition["key"]] = of
    return {"conditions": conditions, "table_steps": at, "table": table, "differences_to_recipe": differences}


def nearest(steps, wanted):
    return min((step for step in steps if step > 0), key=lambda step: (abs(step - wanted), step))


def point(condition, step):
    found = [p for p in condition["curve"] if p["step"] == step]
    if not found:
        raise SystemExit(f"{condition['label']} has no validation at step {step}, which the others have")
    return found[0]


def describe_model(folder):
    """Layers, width, positions and the number of parameters, from config.json and the header of the weights."""
    config = json.loads(Path(folder, "config.json").read_text())
    if config.get("model_type") != "gpt2":
        raise SystemExit(f"{folder}: model_type {config.get('model_type')!r}, expected a small causal GPT-2")
    with open(Path(folder, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    buffers = (".attn.bias", ".attn.masked_bias")
    shapes = [v["shape"] for k, v in header.items() if k != "__metadata__" and not k.endswith(buffers)]
    return {"family": "GPT-2", "layers": config["n_layer"], "width": config["n_embd"], "heads": config["n_head"],
            "positions": config["n_positions"], "vocabulary": config["vocab_size"],
            "parameters": sum(math.prod(shape) for shape in shapes)}  # fmt: skip


# ---------------------------------------------------------------- words


def plus_minus(mean, half, sign=""):
    return f"{mean:{sign}.3f}".replace("-", "\u2212") + ("" if half is None else f" ± {half:.3f}")


def verdict(result):
    """What the last column says, in words: the order as found, and which differences are clear."""
    finals = {c["key"]: result["table"][c["key"]]["all"]["mean"] for c in result["conditions"]}
    labels = {c["key"]: c["label"] for c in result["conditions"]}
    papers = {c["key"]: c["paper"] for c in result["conditions"]}
    order = sorted(finals, key=finals.get)
    paper = sorted(papers, key=papers.get)
    text = f"In order of the final NELBO, as found: {', '.join(f'{labels[k]} ({finals[k]:.3f})' for k in order)}."
    same = "That is the order of the accuracies in the paper's table." if order == paper else (
        f"The accuracies in the paper's table are in another order: {', '.join(labels[k] for k in paper)}."
    )  # fmt: skip
    if any(parts["all"]["half_interval"] is None for parts in result["differences_to_recipe"].values()):
        return f"{text} {same} One seed gives no intervals."
    clear, unclear = [], []
    for key, parts in result["differences_to_recipe"].items():
        mean, half = parts["all"]["mean"], parts["all"]["half_interval"]
        if abs(mean) > half:
            clear.append(f"{labels[key]} ({'worse' if mean > 0 else 'better'} by {abs(mean):.3f})")
        else:
            unclear.append(labels[key])
    words = [text, same]
    if clear:
        words.append(f"At the end the interval of the paired difference to the full recipe excludes zero for {', '.join(clear)}.")
    if unclear:
        words.append(f"It does not for {', '.join(unclear)}: these seeds do not tell {'it' if len(unclear) == 1 else 'them'} from the recipe.")
    return " ".join(words)


def generated(about, result):
    """The part of the document between its markers."""
    s, m, at = about["settings"], about["model"], result["table_steps"]
    seeds, steps = about["seeds"], s["steps"]
    heads = [f"step {step}" for step in at.values()]
    rows = []
    for c in result["conditions"]:
        cells = [plus_minus(p["mean"], p["half_interval"]) for p in result["table"][c["key"]].values()]
        command = " ".join([f"lacuna {c['command']}", *c["flags"]])
        rows.append(f"| {c['label']} | `{command}` | " + " | ".join(cells) + " |")
    paired = []
    labels = {c["key"]: c["label"] for c in result["conditions"]}
    for key, parts in result["differences_to_recipe"].items():
        cells = [plus_minus(p["mean"], p["half_interval"], "+") for p in parts.values()]
        paired.append(f"| {labels[key]} | " + " | ".join(cells) + " |")
    error = max(result["table"][c["key"]]["all"]["standard_error"] for c in result["conditions"])
    return "\n".join([
        f"{m['family']} of {m['layers']} layers, width {m['width']}, {m['parameters'] / 1e6:.1f} M parameters; {about['text']},"
        f" the last {s['held_out_percent']} % of its tokens held out; {steps} steps of {s['batch']} x {s['length']} tokens, peak"
        f" learning rate {s['lr']:g} after {s['warmup']} steps, annealing over {s['anneal_steps']} steps; seeds"
        f" {', '.join(map(str, seeds))}; {about['lacuna']}, {about['processor']}. Held-out NELBO on"
        f" {s['validation_sequences']} sequences, {s['validation_draws']} draws each.",
        "",
        "![Held-out NELBO against training steps for the four conditions](adaptation.svg)",
        "",
        f"Held-out NELBO, nats a token: mean over {len(seeds)} seeds ± half of its 95 % interval (Student's t over seeds)."
        if len(seeds) > 1
        else "Held-out NELBO, nats a token, of one seed.",
        "",
        "| condition | command | " + " | ".join(heads) + " |",
        "|---|---|" + "---:|" * len(heads),
        *rows,
        "",
        "Difference to the full recipe, paired by seed; above zero is worse than the recipe:",
        "",
        "| condition | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(heads),
        *paired,
        "",
        verdict(result),
        "",
        f"The standard error of one NELBO over the held-out sequences is at most {error:.3f}; it is common to all runs, which"
        " are measured on the same sequences and masks, and so it is in no interval above.",
    ])  # fmt: skip


def insert(document, text):
    """Puts the text between the markers of the document."""
    old = document.read_text()
    begin, end = (old.find(marker) for marker in MARKERS)
    if not 0 <= begin < end or any(old.count(marker) != 1 for marker in MARKERS):
        raise SystemExit(f"{document}: expected the lines {MARKERS[0]} and {MARKERS[1]} once each, in this order")
    document.write_text(old[: begin + len(MARKERS[0])] + "\n" + text + "\n" + old[end:])


# ---------------------------------------------------------------- the figure


def use_matplotlib():
    """Goes on in an interpreter that has matplotlib: this one, or that of the environment under target/."""
    if importlib.util.find_spec("matplotlib"):
        return
    python = VENV / "bin/python"
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SystemExit(f"{VENV} has no matplotlib though it was asked for; remove the folder and try again")
    if not python.exists():
        print(f"making {VENV} with matplotlib", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "matplotlib"], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def spread(places, gap):
    """Moves places up, in their order, so that no two are nearer than `gap`, and their middle stays."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [places[i] for i in order]
    for _ in range(200):
        for i in range(len(moved) - 1):
            short = gap - (moved[i + 1] - moved[i])
            if short > 1e-9:
                moved[i] -= short / 2
                moved[i + 1] += short / 2
    back = dict(zip(order, moved))
    return [back[i] for i in range(len(places))]


def plot(result, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "adaptation", "font.size": 10, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.labelcolor": "#222222",
                         "xtick.color": "#444444", "ytick.color": "#444444"})  # fmt: skip
    about, conditions = result["about"], result["conditions"]
    looks = {c["key"]: c for c in CONDITIONS}
    steps, seeds = about["settings"]["steps"], len(about["seeds"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.6), width_ratios=[2.4, 1], layout="constrained")
    figure.patch.set_facecolor("white")

    # Curves. What is above the axis is the first part of a run, in which the losses fall from their start.
    late = [p["mean"] + (p["half_interval"] or 0) for c in conditions for p in c["curve"] if p["step"] >= 0.06 * steps]
    low = min(p["mean"] - (p["half_interval"] or 0) for c in conditions for p in c["curve"])
    high = max(late)
    margin = 0.05 * (high - low)
    left.set_ylim(low - margin, high + margin)
    ends = []
    for number, c in enumerate(conditions):
        look, curve = looks[c["key"]], c["curve"]
        x, y = [p["step"] for p in curve], [p["mean"] for p in curve]
        half = [p["half_interval"] or 0.0 for p in curve]
        left.fill_between(x, [a - b for a, b in zip(y, half)], [a + b for a, b in zip(y, half)],
                          color=look["colour"], alpha=0.17, linewidth=0)  # fmt: skip
        every = max(len(x) // 7, 1)
        left.plot(x, y, color=look["colour"], linestyle=look["line"], linewidth=1.9, marker=look["mark"], markersize=5,
                  markerfacecolor="white", markeredgewidth=1.3, markevery=(number * every // 4, every))  # fmt: skip
        ends.append(y[-1])
    heights = spread(ends, 0.058 * (high - low + 2 * margin))
    for c, end, height in zip(conditions, ends, heights):
        colour = looks[c["key"]]["colour"]
        left.annotate(c["label"], xy=(steps, end), xytext=(1.035 * steps, height), color=colour, va="center",
                      fontweight="bold", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1})  # fmt: skip
    left.set_xlim(0, 1.3 * steps)
    left.set_xticks([t for t in left.get_xticks() if 0 <= t <= steps])
    left.spines["bottom"].set_bounds(0, steps)
    anneal = about["settings"]["anneal_steps"]
    left.axvline(anneal, color="#888888", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    left.annotate("annealing ends: attention\nis bidirectional from here", xy=(anneal, 0.985), xycoords=("data", "axes fraction"),
                  xytext=(4, 0), textcoords="offset points", va="top", color="#666666", fontsize=8.5)  # fmt: skip
    bottom, top = left.get_ylim()
    left.hlines([t for t in left.get_yticks() if bottom <= t <= top], 0, steps, color="#e4e4e4", linewidth=0.8, zorder=0)
    left.set_xlabel("training step")
    left.set_ylabel("held-out NELBO, nats a token (less is better)")
    band = f"mean of {seeds} seeds; band: 95 % interval over seeds" if seeds > 1 else "one seed"
    left.set_title(band, loc="left", fontsize=10, color="#222222")

    # Differences at the end. A logarithmic axis would hide the sign, so each has its number.
    rows = list(result["differences_to_recipe"].items())
    labels = {c["key"]: c["label"] for c in conditions}
    reach = 0.0
    for row, (key, parts) in enumerate(rows):
        p, look = parts["all"], looks[key]
        half = p["half_interval"] or 0.0
        reach = max(reach, abs(p["mean"]) + half)
        right.errorbar(p["mean"], -row, xerr=half, fmt=look["mark"], color=look["colour"], markersize=6, capsize=4,
                       linewidth=1.6, markerfacecolor="white", markeredgewidth=1.4)  # fmt: skip
        for value in p["by_seed"].values():
            right.plot(value, -row - 0.17, ".", color=look["colour"], markersize=4, alpha=0.7)
        right.annotate(f"{labels[key]}: {plus_minus(p['mean'], p['half_interval'], '+')}", xy=(0.02, -row + 0.2),
                       xycoords=("axes fraction", "data"), color=look["colour"], fontweight="bold", fontsize=9.5,
                       va="bottom", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    least = min(p["all"]["mean"] - (p["all"]["half_interval"] or 0) for _, p in rows)
    right.set_xlim(min(1.1 * least, -0.12 * reach), 1.1 * reach)
    right.set_ylim(-len(rows) + 0.45, 0.75)
    right.axvline(0, color="#888888", linewidth=0.9, zorder=0)
    right.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    right.set_axisbelow(True)
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    right.set_xlabel("NELBO above that of shift + annealing")
    right.set_title(f"paired differences after {steps} steps", loc="left", fontsize=10, color="#222222")
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


# ---------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", metavar="MODEL_DIR", help="a folder with a small causal GPT-2")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="a text file")
    parser.add_argument("--steps", type=int, default=1000, help="of every run (default 1000)")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step (default 16)")
    parser.add_argument("--length", type=int, help="tokens of a sequence (default: the model's positions, at most 128)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    parser.add_argument("--warmup", type=int, metavar="W", help="steps of rising learning rate (default: a twentieth)")
    parser.add_argument("--anneal-steps", type=int, metavar="A", help="steps of annealing (default: a fifth)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="(default 0 1 2)")
    parser.add_argument("--validate-every", type=int, metavar="K", help="steps between validations (default: a fortieth)")
    parser.add_argument("--validation-sequences", type=int, default=128, metavar="V",
                        help="held-out sequences of a validation (default 128)")
    parser.add_argument("--validation-draws", type=int, default=4, metavar="D", help="masks of each (default 4)")
    parser.add_argument("--save-every", type=int, metavar="N", help="steps between checkpoints (default: a fifth)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, help="threads of each (default: all of the machine's, shared among the jobs)")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--work", type=Path, default=ROOT / "target/adaptation", metavar="DIR",
                        help="where tokens and runs are kept (default target/adaptation)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/experiments", metavar="DIR",
                        help="where the result goes: a folder with adaptation.md (default docs/experiments)")
    parser.add_argument("--progress-every", type=float, default=20, metavar="SECONDS", help="(default 20)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing, read the logs that are there")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="only draw the figure beside this result")
    args = parser.parse_args()
    if args.plot:
        return args
    if not args.model or not args.text:
        parser.error("MODEL_DIR and TEXT are needed")
    for path in (Path(args.model, "config.json"), Path(args.model, "model.safetensors"), Path(args.text)):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    if len(set(args.seeds)) != len(args.seeds):
        parser.error("--seeds: one is there twice")
    positions = describe_model(args.model)["positions"]
    args.length = args.length or min(positions, 128)
    if args.length > positions:
        parser.error(f"--length {args.length}: the model has {positions} positions")
    for name, part in (("warmup", 20), ("anneal_steps", 5), ("validate_every", 40), ("save_every", 5)):
        if getattr(args, name) is None:
            setattr(args, name, max(args.steps // part, 1))
    args.threads = args.threads or max((os.cpu_count() or 1) // max(args.jobs, 1), 1)
    counts = ["steps", "batch", "length", "anneal_steps", "validate_every", "validation_sequences", "validation_draws"]
    for name in [*counts, "save_every", "jobs", "threads"]:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is at least 1")
    if not 0 <= args.warmup <= args.steps or not args.anneal_steps <= args.steps or not args.lr > 0:
        parser.error("--warmup and --anneal-steps are at most --steps, and --lr is above 0")
    args.work = args.work.resolve()
    args.tokens = args.work / "text.tokens"
    args.held_out = args.work / HELD_OUT.format(stem=args.tokens.stem, suffix=args.tokens.suffix)
    return args


def report(args, runs):
    version = subprocess.run([args.lacuna, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    about = {"settings": settings(args), "seeds": args.seeds, "model": describe_model(args.model),
             "text": f"{Path(args.text).name}, {Path(args.text).stat().st_size / 1e6:.1f} MB", "lacuna": version,
             "processor": processor(), "system": platform.system(), "confidence": CONFIDENCE}  # fmt: skip
    result = {"about": about} | analyse(args, runs)
    path = args.docs / "adaptation.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    insert(args.docs / "adaptation.md", generated(about, result))
    subprocess.run([sys.executable, __file__, "--plot", str(path)], check=True)
    print(verdict(result))


def main():
    args = arguments()
    if args.plot:
        use_matplotlib()
        plot(json.loads(args.plot.read_text()), args.plot.with_suffix(".svg"))
        return
    if not (args.docs / "adaptation.md").is_file():
        raise SystemExit(f"{args.docs}: no adaptation.md there, which the result is put into")
    args.lacuna = args.lacuna or ("lacuna" if args.dry_run else find_lacuna(None))
    # Seed after seed, so that a first comparison is there early.
    runs = [Run(args, condition, seed) for seed in args.seeds for condition in CONDITIONS]
    if args.dry_run:
        for run in runs:
            print(f"# {run.name}: " + ("finished" if run.done() else shlex.join(map(str, run.command()))))
        return
    check_settings(args)
    if not args.report_only:
        pack(args)
        run_all(args, runs)
    report(args, runs)


if __name__ == "__main__":
    main()
