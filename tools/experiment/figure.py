"""The figure, by matplotlib in an environment of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from compare.setup import ROOT
from experiment.conditions import CONDITIONS
from experiment.words import plus_minus

VENV = ROOT / "target/plot-venv"


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
    os.execv(python, [str(python), *sys.argv])


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
