"""The tables of report.md about training, and which goals are met."""

from tables import number, ratio, table
from train_models import peak

GIB = 2**30


# ---------------------------------------------------------------- kernels


def pairs(rows, stem):
    """(shape, lacuna's line, PyTorch's lines) of every size of a kernel file that both timed."""
    found = {}
    for r in rows:
        if r.get("bench") == "kernel" and r.get("stem") == stem and r.get("median_us"):
            own, torch = found.setdefault((r.get("dtype"), r.get("shape")), ([], []))
            (own if r.get("who") == "lacuna" else torch).append(r)
    return [(shape, own[-1], torch) for (_, shape), (own, torch) in found.items() if own and torch]


def memory(rows):
    """What the masked loss needs beside its inputs and gradients."""
    body = []
    for shape, own, torch in pairs(rows, "head"):
        for way in torch:
            if "masked loss" in shape:
                more = way.get("extra_bytes")
                body.append(
                    (shape, way.get("variant", ""), number(way["median_us"]), number(own["median_us"]),
                     ratio(way["median_us"], own["median_us"]), number(more / 2**20) if more else "–",
                     number(own["workspace_bytes"] / 2**20) if own.get("workspace_bytes") else "–",
                     ratio(more, own.get("workspace_bytes")))
                )
    if not body:
        return []
    head = ["", "PyTorch's way", "PyTorch µs", "lacuna µs", "ratio", "PyTorch's extra MiB", "lacuna's workspace MiB", "ratio"]
    return ["### masked loss, time and memory", ""] + table(head, body, 2)


# ---------------------------------------------------------------- steps


def steps_of(rows):
    """PyTorch's and lacuna's lines by size: {(shape, batch, length, rank): {who or way: line}}."""
    found = {}
    for r in rows:
        if r.get("bench") == "train" and "batch" in r:
            key = (r.get("shape"), r["batch"], r.get("length"), r.get("lora_rank"))
            who = r.get("who")
            found.setdefault(key, {})[f"PyTorch, {r.get('variant')}" if who == "PyTorch" else who] = r
    return found


def utilisation(row, flops, most):
    return f"{flops / row['seconds'] / most:.1%}" if row.get("seconds") and flops and most else "–"


def gib(row):
    return number(row["device_bytes"] / GIB) if row.get("device_bytes") else "–"


def training(rows):
    """A row a size and a way of PyTorch's, then lacuna's other ways."""
    found, body, others, notes = steps_of(rows), [], [], []
    cards = [r.get("peak_flops") or peak(r.get("device")) for r in rows if r.get("bench") == "train"]
    most = next((flops for flops in cards if flops), None)

    def rate(row):
        return number(row["tokens_per_second"]) if row.get("tokens_per_second") else "–"

    def note(who, row):
        if not row.get("error"):
            return ""
        words = f"{who}: {row['error']}"
        if words not in notes:
            notes.append(words)
        return f" [{notes.index(words) + 1}]"

    for (shape, batch, length, rank), by in found.items():
        size = f"{shape}, {batch} x {length}" + (f", adapters of rank {rank}" if rank else "")
        own = by.get("lacuna", {})
        flops = own.get("flops") or next((r["flops"] for r in by.values() if r.get("flops")), None)
        ways = [who for who in by if str(who).startswith("PyTorch")] or [None]
        for who in ways:
            torch = by.get(who, {})
            body.append(
                (size, str(who or "–").replace("PyTorch, ", ""), number(torch.get("seconds")) + note("PyTorch", torch),
                 number(own.get("seconds")) + note("lacuna", own), ratio(torch.get("seconds"), own.get("seconds")), rate(torch),
                 rate(own), utilisation(torch, flops, most), utilisation(own, flops, most), gib(torch), gib(own))
            )
        for who, row in by.items():
            if not str(who).startswith("PyTorch") and who != "lacuna":
                others.append((size, who, number(row.get("seconds")) + note(who, row), rate(row),
                               ratio(own.get("seconds"), row.get("seconds")), gib(row)))
    if not body:
        return []
    head = ["", "PyTorch's way", "PyTorch s", "lacuna s", "ratio", "PyTorch tokens/s", "lacuna tokens/s", "PyTorch MFU",
            "lacuna MFU", "PyTorch GiB", "lacuna GiB"]
    lines = table(head, body, 2)
    if others:
        lines += ["lacuna's other ways (above 1: faster than its usual one):", ""]
        lines += table(["", "", "s", "tokens/s", "ratio", "GiB"], others, 2)
    lines += [f"[{i}] {words}." for i, words in enumerate(notes, 1)] + [""] * bool(notes)
    peaks = f"{most / 1e12:.0f} TFLOP/s, dense bf16" if most else "not known for this card: no MFU"
    lines += [f"Peak: {peaks}.", ""]
    about = dict.fromkeys(r["model"] for r in rows if r.get("who") == "PyTorch" and r.get("model"))
    return lines + [f"PyTorch: {words}." for words in about] + [""] * bool(about)


def runs(rows):
    """Training runs of minutes, and what the last one's model writes."""
    body = [
        (r["what"], number(r.get("seconds")), f"{r['steps']} of {r.get('planned_steps')}", f"{r.get('batch')} x {r.get('length')}",
         number(r.get("tokens_per_second")), number(r.get("first_unweighted")), number(r.get("last_unweighted")),
         number(r.get("first_nelbo")), number(r.get("last_nelbo")), number(r.get("skipped_steps")))
        for r in rows
        if "steps" in r and "what" in r
    ]
    head = ["", "s", "steps", "tokens of a step", "tokens/s", "loss, first", "loss, last", "NELBO, first", "NELBO, last", "skipped"]
    lines = table(head, body) if body else []
    for r in rows:
        if isinstance(r.get("sample"), str):
            shown = ("".join(c if c.isprintable() else "\ufffd" for c in line) for line in r["sample"].split("\n"))
            lines += ["What it writes from nothing:", "", *("> " + line for line in shown), ""]
    return lines


# ---------------------------------------------------------------- goals


def verdict(met):
    return "not measured" if met is None else "**met**" if met else "**not met**"


def goal_attention(rows):
    goal = 0.8
    ratios = {}
    for shape, own, torch in pairs(rows, "attention_bwd"):
        flash = next((w for w in torch if w.get("variant") == "flash"), None)
        if flash:
            ratios[shape] = flash["median_us"] / own["median_us"]
    words = f"attention backward at least {goal} times as fast as PyTorch's FlashAttention-2, at every size"
    if not ratios:
        return words, "–", None
    worst = min(ratios, key=ratios.get)
    return words, f"{min(ratios.values()):.2f}x ({worst}) to {max(ratios.values()):.2f}x, {len(ratios)} sizes", min(ratios.values()) >= goal


def goals_loss(rows):
    """Of the sizes with half of the rows masked, against the fastest of PyTorch's ways, and the leanest."""
    times, bytes_ = {}, {}
    for shape, own, torch in pairs(rows, "head"):
        numbers = [int(word) for word in shape.replace(",", "").split() if word.isdigit()]
        if "masked loss" not in shape or len(numbers) < 2 or 2 * numbers[0] != numbers[1]:
            continue
        times[shape] = min(w["median_us"] for w in torch) / own["median_us"]
        extra = [w["extra_bytes"] for w in torch if w.get("extra_bytes")]
        if extra and own.get("workspace_bytes"):
            bytes_[shape] = own["workspace_bytes"] / min(extra)

    def words(found):
        return ", ".join(f"{value:.3g} ({shape.split(', ', 2)[-1]})" for shape, value in found.items()) or "–"

    fast = "masked loss with half of the rows masked at least 1.5 times as fast as the fastest of PyTorch's ways"
    lean = "and with at most 1/10 of the extra memory of the leanest"
    return (
        (fast, words(times), min(times.values()) >= 1.5 if times else None),
        (lean, words(bytes_), max(bytes_.values()) <= 0.1 if bytes_ else None),
    )


def goal_step(rows):
    ratios = {}
    for (shape, batch, length, _), by in steps_of(rows).items():
        torch, own = (by.get(who, {}).get("seconds") for who in ("PyTorch, compiled", "lacuna"))
        if shape == "diffugpt-s" and torch and own:
            ratios[f"{batch} x {length}"] = torch / own
    words = "a training step of the 124M model at least 1.2 times as fast as PyTorch's compiled one"
    found = ", ".join(f"{value:.2f}x ({size})" for size, value in ratios.items())
    return words, found or "–", min(ratios.values()) >= 1.2 if ratios else None


def goals(rows):
    if not any(r["part"] in ("backward", "train") for r in rows):
        return []
    found = [goal_attention(rows), *goals_loss(rows), goal_step(rows)]
    return ["## Goals of training", ""] + table(["goal", "measured", ""], [(g, m, verdict(met)) for g, m, met in found], 3)
