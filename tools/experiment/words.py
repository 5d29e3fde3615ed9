"""The generated part of the document: tables, and a sentence on the order that was found."""


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
