"""What was measured, as a Markdown table; the place of it in docs/performance.md; goals."""

import datetime
import os
import statistics
import tempfile
from pathlib import Path

from compare import llama_cpp
from compare.lines import spread
from compare.measure import LACUNA, TORCH
from compare.setup import processor

BEGIN, END = "<!-- compare_torch:begin -->", "<!-- compare_torch:end -->"
HEADS = {
    "forward": "Forward", "generate": "Generation", "train": "Training step", "sample": "Sampling step",
}  # fmt: skip
# At least this many times as fast as PyTorch; for generations by the number of steps.
GOALS = {"forward": 1.25, "generate": {32: 6.0, 128: 11.0}, "train": 1.5, "sample": 30.0}
# At most this share of PyTorch's peak memory. A sampling step has no goal: `bench kernels` holds buffers of its own.
MEMORY_GOAL = 0.7


def seconds(values):
    """A median with its spread, in the unit that suits it."""
    middle = statistics.median(values)
    number = f"{middle:.3f} s" if middle >= 0.1 else f"{1000 * middle:.2f} ms"
    return f"{number} ± {100 * spread(values):.0f} %" if len(values) > 1 else number


def mib(count):
    return f"{count / 2**20:.0f}" if count else "–"


def rate(line):
    value = line and line.get("tokens_per_s", line.get("tokens_raw_per_s"))
    return f"{value:.1f}" if value else "–"


def rows_of(rows, notes):
    """The cells of one table."""
    lines = [
        "| | PyTorch | lacuna | ratio | tokens/s PyTorch | tokens/s lacuna | peak MiB PyTorch | peak MiB lacuna | memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        mark = ""
        if row.note:
            notes.append(row.note)
            mark = f" [{len(notes)}]"
        cells = [row.words + mark]
        cells += [seconds(row.seconds(who)) if row.turns.get(who) else "–" for who in (TORCH, LACUNA)]
        cells.append(f"{row.ratio():.2f}x" if row.ratio() else "–")
        cells += [rate(row.lines.get(who)) for who in (TORCH, LACUNA)]
        cells += [mib(row.peak(who)) if row.turns.get(who) else "–" for who in (TORCH, LACUNA)]
        cells.append(f"{row.memory_ratio():.2f}x" if row.memory_ratio() else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def llama_rows(rows, notes):
    lines = ["| | llama.cpp | lacuna | ratio | peak MiB llama.cpp | peak MiB lacuna |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        notes.append(row.note)
        own, other = (row.turns.get(who) for who in (LACUNA, llama_cpp.WHO))
        ratio = statistics.median(row.seconds(llama_cpp.WHO)) / statistics.median(row.seconds(LACUNA)) if own and other else None
        cells = [f"{row.words} [{len(notes)}]", seconds(row.seconds(llama_cpp.WHO)), seconds(row.seconds(LACUNA)) if own else "–"]
        cells += [f"{ratio:.2f}x" if ratio else "–", mib(row.peak(llama_cpp.WHO)), mib(row.peak(LACUNA)) if own else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown(measurement, command):
    """Everything measured, with what it was measured on and how to run it again."""
    args, about = measurement.args, measurement.about
    lacuna = f"lacuna {args.version}" + (f" ({measurement.commit})" if measurement.commit else "")
    devices = {row.lines[LACUNA].get("device") for row in measurement.rows if LACUNA in row.lines} - {None}
    facts = [f"{processor()}, {args.threads} threads", lacuna + (f" on {', '.join(sorted(devices))}" if devices else "")]
    if "torch" in about:
        optimizer = f", torch.optim.AdamW {about['optimizer']}" if about.get("optimizer") else ""
        facts.append(f"PyTorch {about['torch']}, transformers {about['transformers']}{optimizer}, {mib(about['imported_bytes'])} MiB of its peaks being there once it is imported")
    facts.append(f"{datetime.date.today().isoformat()}")
    runs = sorted({len(row.seconds(who)) for row in measurement.rows for who in row.turns if row.turns[who]})
    runs = "–".join(map(str, runs if len(runs) < 2 else (runs[0], runs[-1])))
    lines = [
        "; ".join(facts) + f". Medians of {runs} turns ± interquartile range over median; ratio: PyTorch's time over lacuna's;"
        " memory: lacuna's peak over PyTorch's.",
        "",
    ]
    notes = []
    for part, head in HEADS.items():
        rows = [row for row in measurement.rows if row.part == part]
        if rows:
            lines += [f"**{head}**", "", *rows_of(rows, notes), ""]
    rows = [row for row in measurement.rows if row.part == "llama.cpp"]
    if rows:
        lines += ["**llama.cpp's diffusion example**", "", *llama_rows(rows, notes), ""]
    lines += [f"[{i}] {note}." for i, note in enumerate(notes, 1)] + [""] * bool(notes)
    return "\n".join([*lines, "```sh", command, "```"])


# ---------------------------------------------------------------- the place in a document


def markers(path):
    """The text before, and after, what stands between the markers of a document."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"--docs {path}: {error.strerror}") from None
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended) or BEGIN in rest or END in after:
        raise SystemExit(f"--docs {path}: expected one {BEGIN} and after it one {END}")
    if not os.access(path, os.W_OK):
        raise SystemExit(f"--docs {path}: cannot be written")
    return before, after


def write_docs(path, table):
    """Puts the table between the markers, whole or not at all."""
    before, after = markers(path)
    path = Path(path)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n{table}\n{END}{after}")
    os.chmod(file.name, path.stat().st_mode & 0o777)
    os.replace(file.name, path)


# ---------------------------------------------------------------- goals


def goals(rows):
    """(met, words) for every goal that a row has; None for a goal whose row is not whole."""
    judged = []

    def judge(words, value, goal, met):
        state = "left out" if value is None else "met" if met(value) else "missed"
        told = "not measured in both programs" if value is None else f"{value:.2f}x PyTorch's"
        judged.append((None if value is None else met(value), f"{state}: {words}: {told}, goal {goal}"))

    for row in rows:
        goal = GOALS.get(row.part)
        if isinstance(goal, dict):
            line = next(iter(row.lines.values()), {})
            goal = goal.get(line.get("steps")) if line.get("length") == 128 else None
        if goal:
            judge(f"{row.words}: speed", row.ratio(), f"at least {goal:g}x", lambda x, goal=goal: x >= goal)
        if row.part in ("forward", "generate", "train"):
            judge(f"{row.words}: memory", row.memory_ratio(), f"at most {MEMORY_GOAL:g}x", lambda x: x <= MEMORY_GOAL)
    return judged
