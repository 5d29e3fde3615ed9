"""From the logs of the runs to means, intervals and paired differences."""

import json
import math
import statistics
import struct
from pathlib import Path

from experiment.conditions import CONDITIONS, CONFIDENCE, PARTS


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
