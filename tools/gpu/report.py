"""The last step of tools/gpu_check.sh: OUTDIR/results.jsonl, every line of every part, and OUTDIR/report.md, the tables.

  report.py OUTDIR [OTHER...]     lines of earlier runs on the same card, from their folders, are read before those of OUTDIR
"""

import json
import sys
from pathlib import Path

from report_training import goals, memory, runs, training
from tables import bench_line, number, ratio, seconds, table

ROOFLINE = 800.0  # TFLOP/s in bf16: about what cuBLAS reaches on an H100 at 8192 cubed
PARTS = {
    1: "facts",
    2: "selftest",
    3: "sanitizer",
    4: "ceilings",
    5: "kernels",
    6: "denoise",
    7: "backward",
    8: "train",
    9: "retrain",
    10: "smollm2",
    11: "end",
}


def read(folder):
    """All lines, in the order of the parts, each with its part; a line that is no JSON (cut short) becomes an error."""
    rows = []

    def place(path):
        digits = path.name.split("-")[0]
        return (int(digits) if digits.isdigit() else len(PARTS), path.name)

    for path in sorted(folder.glob("[0-9]*.jsonl"), key=place):
        part = PARTS.get(place(path)[0], path.stem)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                found = {"error": f"a line that is no JSON: {line[:100]}"}
            if not isinstance(found, dict):
                found = {"error": f"a line that is no object: {line[:100]}"}
            row = {"part": part, **found}
            if "lacuna" in path.stem:
                row.setdefault("who", "lacuna")
            rows.append(bench_line(row))
    return rows


def facts(rows):
    found = {}
    for row in rows:
        found.update({k: v for k, v in row.items() if k not in ("part", "exit_code", "seconds", "bash")})
    for name in ("error", "skipped"):
        found.pop(name, None)
    tiny = ["**Tiny sizes on the CPU: nothing here is a measurement.**", ""] if found.pop("tiny", False) else []
    card = found.get("smi_name") or found.get("torch_device") or found.get("host_card", "unknown")
    lines = [*tiny, f"Card: **{card}**. Date: {found.get('date', 'unknown')}. Commit: {found.get('commit', 'unknown')}.", ""]
    kept = [(k.removeprefix("smi_") if hasattr(k, "removeprefix") else k, v) for k, v in found.items()]
    return lines + table(["", ""], [(k, v) for k, v in kept if v is not None], 2)


def selftest(rows):
    cases = [r for r in rows if r.get("type") == "case"]
    summary = next((r for r in rows if r.get("type") == "summary"), {})
    failed = [r for r in cases if not r.get("passed")]
    device = f" on {summary['device_facts']}" if "device_facts" in summary else ""
    lines = [f"{len(cases)} case{'s' * (len(cases) > 1)} ran{device}, {len(failed)} failed." if cases else "No case ran.", ""]
    for row in failed[:20]:
        lines.append(f"- **FAILED** `{row.get('kernel')}` ({row.get('shape')}): {row.get('message', 'no message')}")
    if len(failed) > 20:
        lines.append(f"- and {len(failed) - 20} more, in results.jsonl")
    return lines + [""] * bool(failed)


def sanitizer(rows):
    tools = [r for r in rows if "tool" in r]
    if not tools:
        return []
    words = [(r["tool"], r.get("error") or "nothing found", r.get("summary", ""), number(r.get("seconds"))) for r in tools]
    return table(["tool", "outcome", "its summary", "s"], words, 3)


def ceilings(rows):
    found = [r for r in rows if "what" in r]
    lines = []
    for r in found:
        rate = f"{number(r.get('gb_per_s'))} GB/s" if "gb_per_s" in r else f"{number(r.get('tflop_per_s'))} TFLOP/s"
        lines.append((r["what"], r.get("shape", ""), r.get("error") or rate, number(r.get("median_us"))))
    return table(["", "", "rate", "median µs"], lines, 2) if lines else []


def kernels(rows, all_rows):
    """A row a size: lacuna, the best of PyTorch's ways, the ratio; then all of PyTorch's ways of attention."""
    timed = [r for r in rows if r.get("bench") == "kernel"]
    own = {(r["stem"], r.get("dtype"), r.get("shape")): r for r in timed if r.get("who") == "lacuna"}
    torch = {}
    for r in timed:
        if r.get("who") == "PyTorch":
            torch.setdefault((r["stem"], r.get("dtype"), r.get("shape")), []).append(r)
    ceiling = [r for r in all_rows if r["part"] == "ceilings"]
    copy = max((r.get("gb_per_s", 0) for r in ceiling), default=0)
    product = max((r.get("tflop_per_s", 0) for r in ceiling), default=0)
    lines = []
    stems = list(dict.fromkeys(key[0] for key in [*own, *torch]))
    for stem in stems:
        body = []
        for key in dict.fromkeys(k for k in [*own, *torch] if k[0] == stem):
            mine, ways = own.get(key, {}), [w for w in torch.get(key, []) if w.get("median_us")]
            best = min(ways, key=lambda w: w["median_us"], default={})
            rate, share = "–", "–"
            if mine.get("tflop_per_s"):
                rate = f"{number(mine['tflop_per_s'])} TFLOP/s"
                share = f"{mine['tflop_per_s'] / product:.0%}" if product else "–"
            elif mine.get("gb_per_s"):
                rate = f"{number(mine['gb_per_s'])} GB/s"
                share = f"{mine['gb_per_s'] / copy:.0%}" if copy else "–"
            theirs = f"{number(best['median_us'])} ({best.get('variant', '')})" if best else "–"
            body.append(
                (f"{key[2]}, {key[1]}", number(mine.get("median_us")), number(mine.get("min_us")), rate, share, theirs,
                 ratio(best.get("median_us"), mine.get("median_us")))
            )
        lines += [f"### {stem}", ""]
        lines += table(["", "lacuna µs", "shortest", "rate", "of ceiling", "PyTorch µs (its best way)", "ratio"], body)
    for stem in ("attention", "attention_bwd"):
        ways = [(k, v) for k, v in torch.items() if k[0] == stem]
        names = list(dict.fromkeys(w.get("variant") for _, v in ways for w in v))
        if not ways:
            continue
        body = []
        for key, found in ways:
            by = {w.get("variant"): w for w in found}
            flops = next((r["flops"] for r in [own.get(key, {}), *found] if r.get("flops")), 0)
            words = []
            for name in names:
                time = by.get(name, {}).get("median_us")
                words.append(number(flops / time / 1e6) if time and flops else "–")
            mine = own.get(key, {}).get("tflop_per_s")
            body.append((key[2], number(mine), *words))
        lines += [f"### {stem}, TFLOP/s of every way", ""] + table(["", "lacuna", *names], body)
    return lines


def denoise(rows):
    runs = [r for r in rows if r.get("bench") in ("denoise", "ar") and "length" in r]
    found = {}
    for r in runs:
        key = (r["bench"], r.get("shape"), r["length"], r.get("steps"), r.get("batch"))
        found.setdefault(key, {})[r.get("who")] = r
    if not found:
        return []
    notes, body = [], []

    def note(words):
        if words not in notes:
            notes.append(words)
        return f" [{notes.index(words) + 1}]"

    def both(key):
        pair = found.get(key, {})
        torch, own = pair.get("PyTorch", {}), pair.get("lacuna", {})
        mark = note(f"PyTorch: {torch['scaled']}") if torch.get("scaled") else ""
        failed = {who: note(f"{who}: {r['error']}") for who, r in (("PyTorch", torch), ("lacuna", own)) if r.get("error")}
        t, o = seconds(torch), seconds(own)
        words = (number(t) + mark if t else "–") + failed.get("PyTorch", ""), number(o) + failed.get("lacuna", "")
        return torch, own, t, o, words

    for key in (k for k in found if k[0] == "denoise"):
        _, shape, length, steps, batch = key
        torch, own, t, o, words = both(key)
        _, _, at, ao, ar_words = both(("ar", shape, length, 0, batch))
        tokens = batch * (length - 1)
        rate = own.get("tflop_per_s")
        body.append(
            (shape, f"{length}", f"{steps}", f"{batch}", *words, ratio(t, o), number(tokens / t) if t else "–",
             number(own.get("tokens_per_s")), number(own.get("nfe")), number(own["flops"] / 1e12) if own.get("flops") else "–",
             number(torch["flops"] / 1e12) if torch.get("flops") else "–", number(rate),
             f"{rate / ROOFLINE:.0%}" if rate else "–", *ar_words)
        )
    head = ["shape", "L", "T", "batch", "PyTorch s", "lacuna s", "ratio", "PyTorch tokens/s", "lacuna tokens/s", "NFE",
            "TFLOP needed", "TFLOP of the plain loop", "lacuna TFLOP/s", f"of {ROOFLINE:.0f}", "AR PyTorch s", "AR lacuna s"]
    lines = table(head, body) if body else []
    ar = []
    for key in (k for k in found if k[0] == "ar"):
        _, shape, length, _, batch = key
        torch, own, t, o, words = both(key)
        tokens = batch * (length - 1)
        ar.append((shape, f"{length}", f"{batch}", *words, ratio(t, o), number(tokens / t) if t else "–",
                   number(tokens / o) if o else "–"))
    if ar:
        lines += ["Token by token, with a cache of keys and values:", ""]
        lines += table(["shape", "L", "batch", "PyTorch s", "lacuna s", "ratio", "PyTorch tokens/s", "lacuna tokens/s"], ar)
    compared = []
    for key in found:
        library, by_own = (seconds(found[key].get(who, {})) for who in ("lacuna", "lacuna, own products"))
        if by_own:
            _, shape, length, steps, batch = key
            compared.append((shape, f"{length}", f"{steps}", f"{batch}", number(library), number(by_own), ratio(library, by_own)))
    if compared:
        lines += ["Matrix products by the library and by lacuna's own kernels (above 1: its own are faster):", ""]
        lines += table(["shape", "L", "T", "batch", "library s", "own s", "ratio"], compared)
    lines += [f"[{i}] {words}." for i, words in enumerate(notes, 1)] + [""] * bool(notes)
    models = list(dict.fromkeys(r["model"] for r in runs if r.get("who") == "PyTorch" and r.get("model")))
    gemms = list(dict.fromkeys(r["gemm"] for r in runs if r.get("gemm")))
    lines += [f"PyTorch's network: {m}." for m in models] + [""] * bool(models)
    lines += [f"lacuna's matrix products: {', '.join(gemms)}.", ""] if gemms else []
    return lines


def troubles(rows):
    """What was skipped, stopped or failed: once each, with how often."""
    counted = {}
    for r in rows:
        for kind in ("skipped", "stopped", "error"):
            if r.get(kind) and not (kind == "error" and "tool" in r):
                what = " ".join(str(r[k]) for k in ("who", "variant", "what") if r.get(k))
                words = f"{r['part']}: {kind}: {what + ': ' if what and kind == 'error' else ''}{r[kind]}"
                counted[words] = counted.get(words, 0) + 1
    return [f"- {words}{f' ({n} times)' if n > 1 else ''}" for words, n in counted.items()]


HOW = {
    "kernels": "Medians of at least 20 runs by the card's clock, 256 MiB overwritten before each in both programs. PyTorch is"
    " eager, by its best way; *ratio* above 1 means lacuna is faster. *Of ceiling* is against the product or the copy above.",
    "denoise": "Random weights, bf16. PyTorch runs the paper's loop: T forward passes over everything, logits of all rows,"
    " top-p 0.9 by sorting; eager, no CUDA graphs. lacuna draws the same distribution by commit plan. *TFLOP needed* is what lacuna computes.",
    "backward": "As above; PyTorch's forward passes are not in its times, but for the masked loss, where both programs are timed"
    " forward and backward: PyTorch takes all rows through the head and ignores those that are not masked, lacuna only the masked"
    " rows, in chunks of at most 4096. AdamW is PyTorch's fused one in f32; lacuna's also writes a bf16 copy of the parameters.",
    "train": "Random weights, half of the tokens masked; a step is forward, loss, backward, clipping and AdamW. Medians of at"
    " least ten steps after three. MFU is the same FLOP for both (those of `lacuna bench train`: logits of masked rows alone)"
    " over the time and the card's peak by its data sheet. Memory: the most that PyTorch had allocated; what lacuna's process had"
    " taken of the card when the steps were done.",
    "retrain": "By the lacuna binary alone. Losses are means over the first and the last tenth of the steps, nats a masked token;"
    " NELBO is of the held-out text, nats a token.",
}
HOW["smollm2"] = HOW["retrain"]


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    rows = [row for other in [*map(Path, sys.argv[2:]), folder] for row in read(other)]
    with open(folder / "results.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    of = {part: [r for r in rows if r["part"] == part] for part in PARTS.values()}
    lines = ["# lacuna on this card", ""]
    ends = [r["error"] for r in of["end"] if r.get("error")]
    lines += [f"**Not complete: {words}.**" for words in ends] + [""] * bool(ends)
    lines += facts(of["facts"])
    titles = (
        ("selftest", "Self-test", selftest(of["selftest"])),
        ("sanitizer", "compute-sanitizer", sanitizer(of["sanitizer"])),
        ("ceilings", "What the card can do", ceilings(of["ceilings"])),
        ("kernels", "Kernels", kernels(of["kernels"], rows)),
        ("denoise", "Whole generations", denoise(of["denoise"])),
        ("backward", "Kernels of training", kernels(of["backward"], rows) + memory(of["backward"])),
        ("train", "Training steps", training(of["train"])),
        ("retrain", "Training the bundled model anew", runs(of["retrain"])),
        ("smollm2", "Adapting SmolLM2-135M", runs(of["smollm2"])),
    )
    lines += goals(rows)
    for part, title, body in titles:
        if of[part]:
            lines += [f"## {title}", ""]
            lines += [HOW[part], ""] if body and part in HOW else []
            lines += body or ["Nothing was measured.", ""]
    found = troubles(rows)
    lines += ["## What was skipped or failed", "", *(found or ["Nothing."]), ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
