#!/usr/bin/env python3
"""lacuna side by side with the paper's algorithm in PyTorch, on the same weights and threads.

Two things are measured, both in f32, with repeats of the two programs taking turns:

  forward    one plain bidirectional forward pass: all logits of a batch, no cache
  generate   the paper's denoising loop: T forwards over all positions; at every step softmax, top-p
             by sorting the vocabulary, and a multinomial draw for every row, then each masked
             position keeps its draw with probability 1/s. lacuna draws the same distribution.

PyTorch runs transformers' LlamaForCausalLM with scaled-dot-product attention and no mask. Loading and a
first pass are not counted on either side. Peak memory is that of each program's whole process. The result is a Markdown table on standard output, and JSON with
every single measurement with --json FILE.

PyTorch is looked for in the interpreter that runs this, else in tools/.venv, which is made on first use
(a few hundred megabytes from PyPI).

examples:
  tools/compare_torch.py --model smollm2
  tools/compare_torch.py --model smollm2 --threads 1 --steps 32 --only generate
  tools/compare_torch.py --model smollm2 --torch-steps 8      # long loops measured in part, then scaled
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "tools/.venv"
PACKAGES = ["torch", "transformers>=4.56", "numpy", "safetensors"]


# ---------------------------------------------------------------- the PyTorch side


class Torch:
    """The model in PyTorch, and the paper's loop over it."""

    def __init__(self, folder, threads, mask_id):
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        model = transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model = model.eval()
        self.mask_id = mask_id
        for layer in model.model.layers:  # checked by check_bidirectional
            layer.self_attn.is_causal = False

    def logits(self, x):
        """Bidirectional logits [B, L, V] of ids [B, L]."""
        return self.model(input_ids=x, use_cache=False).logits

    def check_bidirectional(self, vocab):
        """Fails unless the first position sees the last one."""
        torch = self.torch
        x = torch.arange(8)[None] % vocab
        y = x.clone()
        y[0, -1] = 11 % vocab
        if torch.equal(self.logits(x)[0, 0], self.logits(y)[0, 0]):
            raise SystemExit("PyTorch's attention is not bidirectional with this version of transformers")

    def draw(self, logits, top_p):
        """One token for every row: softmax, top-p over the sorted vocabulary, multinomial."""
        torch = self.torch
        probs = torch.softmax(logits, -1)
        ordered, order = torch.sort(probs, dim=-1, descending=True)
        before = torch.cumsum(ordered, -1) - ordered
        drop = before > top_p
        drop[..., 0] = False
        kept = probs.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0.0)
        kept = kept / kept.sum(-1, keepdim=True)
        return torch.multinomial(kept.view(-1, kept.shape[-1]), 1).view(kept.shape[:-1])

    def step(self, xt, masked, left, first, top_p):
        """One denoising step in place, with `left` steps to go, this one included."""
        torch = self.torch
        drawn = self.draw(self.logits(xt), top_p)
        predicted = torch.cat([first, drawn[:, :-1]], 1)  # row i predicts position i + 1
        commit = masked & (torch.rand(xt.shape) < 1.0 / left)
        xt[commit] = predicted[commit]
        masked &= ~commit

    def generate(self, length, steps, measured, top_p):
        """Seconds of the whole loop; where `measured` < `steps`, of that many, scaled."""
        torch = self.torch
        first = torch.ones(1, 1, dtype=torch.long)
        xt = torch.full((1, length + 1), self.mask_id)
        xt[:, :1] = first
        masked = torch.ones_like(xt, dtype=torch.bool)
        masked[:, 0] = False
        self.draw(self.logits(xt), top_p)  # a warm-up, not counted
        start = time.perf_counter()
        for k in range(measured):
            self.step(xt, masked, steps - k, first, top_p)
        seconds = time.perf_counter() - start
        if measured == steps and bool(masked.any()):
            raise SystemExit("the loop left masked positions behind")
        return seconds * steps / measured


def serve_torch(args):
    """Child process: reads one JSON command a line, answers with one JSON line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    torch_side = Torch(args.model, args.threads, args.mask_id)
    torch = torch_side.torch
    vocab = torch_side.model.config.vocab_size
    torch_side.check_bidirectional(vocab)
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def answer(**fields):
        fields["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(fields), file=answers, flush=True)

    answer(vocab=vocab, **versions)
    for line in sys.stdin:
        command = json.loads(line)
        if command["what"] == "forward":
            x = torch.tensor(command["x"])
            seconds = []
            for _ in range(command["repeat"] + 1):
                start = time.perf_counter()
                torch_side.logits(x)
                seconds.append(time.perf_counter() - start)
            answer(seconds=statistics.median(seconds[1:]))
        else:
            answer(
                seconds=torch_side.generate(
                    command["length"], command["steps"], command["measured"], command["top_p"]
                )
            )


class TorchProcess:
    """A PyTorch process of its own, so that its peak memory is its own."""

    def __init__(self, python, args):
        command = [python, __file__, "--serve-torch", "--model", args.model]
        command += ["--threads", str(args.threads), "--mask-id", str(args.mask_id)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the PyTorch process ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------- the lacuna side


def run_lacuna(args, *command):
    """Runs the binary and gives its last JSON line and its peak memory in MiB."""
    command = [args.lacuna, *map(str, command), "--threads", str(args.threads), "--json"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\nfailed with {process.returncode}: {errors.read().strip()}")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)}\nprinted no JSON: {output[:500]!r}")
    return json.loads(lines[-1]), usage.ru_maxrss / 1024


def write_ids(path, ids):
    """A safetensors file with one tensor: `x`, int32 [B, L]."""
    data = b"".join(struct.pack(f"<{len(row)}i", *row) for row in ids)
    info = {"dtype": "I32", "shape": [len(ids), len(ids[0])], "data_offsets": [0, len(data)]}
    header = json.dumps({"x": info}).encode()
    header += b" " * (-len(header) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(header)) + header + data)


def lacuna_forward(args, ids, repeat):
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        write_ids(source, ids)
        flags = ["--model", args.model, "--input", source, "--output", target, "--repeat", repeat]
        result, peak = run_lacuna(args, "replay", "forward", *flags)
    return result["seconds"], peak


def lacuna_generate(args, steps):
    flags = ["--model", args.model, "--mask-id", args.mask_id, "--length", args.length, "--steps", steps]
    result, peak = run_lacuna(args, "generate", *flags, "--top-p", args.top_p, "--ignore-eos")
    return result["seconds"], result["nfe"], peak


# ---------------------------------------------------------------- measuring


def compare_forward(args, torch_process, batch, length):
    vocab = torch_process.about["vocab"]
    ids = [[(17 * i + 31 * b + 5) % vocab for i in range(length)] for b in range(batch)]
    torch_seconds, own_seconds, torch_peak, own_peak = [], [], 0.0, 0.0
    for _ in range(args.repeats):
        answer = torch_process.ask(what="forward", x=ids, repeat=args.inner)
        torch_seconds.append(answer["seconds"])
        torch_peak = max(torch_peak, answer["peak_mib"])
        if args.lacuna:
            seconds, peak = lacuna_forward(args, ids, args.inner)
            own_seconds.append(seconds)
            own_peak = max(own_peak, peak)
    name = f"forward, batch {batch}, L = {length}"
    return row(name, torch_seconds, own_seconds, torch_peak, own_peak, batch * length)


def compare_generate(args, torch_process, steps):
    measured = min(steps, args.torch_steps or steps)
    torch_seconds, own_seconds, nfe, torch_peak, own_peak = [], [], None, 0.0, 0.0
    for _ in range(args.repeats):
        answer = torch_process.ask(
            what="generate", length=args.length, steps=steps, measured=measured, top_p=args.top_p
        )
        torch_seconds.append(answer["seconds"])
        torch_peak = max(torch_peak, answer["peak_mib"])
        if args.lacuna:
            seconds, nfe, peak = lacuna_generate(args, steps)
            own_seconds.append(seconds)
            own_peak = max(own_peak, peak)
    name = f"generate {args.length} tokens, T = {steps}, top-p {args.top_p}"
    result = row(name, torch_seconds, own_seconds, torch_peak, own_peak, args.length)
    result["lacuna_nfe"] = nfe
    if measured < steps:
        result["note"] = f"PyTorch: {measured} of {steps} steps measured, scaled linearly"
    return result


def row(name, torch_seconds, own_seconds, torch_peak, own_peak, tokens):
    torch_median = statistics.median(torch_seconds)
    result = {
        "what": name,
        "tokens": tokens,
        "torch_seconds": torch_median,
        "torch_all": torch_seconds,
        "torch_peak_mib": torch_peak,
    }
    if own_seconds:
        median = statistics.median(own_seconds)
        result.update(lacuna_seconds=median, lacuna_all=own_seconds, lacuna_peak_mib=own_peak)
        result["ratio"] = torch_median / median
    own = f", {result['lacuna_seconds']:.3f} s in lacuna" if own_seconds else ""
    print(f"{name}: {torch_median:.3f} s in PyTorch{own}", file=sys.stderr, flush=True)
    return result


def markdown(about, rows):
    lines = [
        f"{about['processor']}, {about['threads']} threads; PyTorch {about['torch']}, transformers"
        f" {about['transformers']}; medians of {about['repeats']}.",
        "",
        "| | PyTorch | lacuna | ratio | tokens/s PyTorch | tokens/s lacuna | peak MiB PyTorch | peak MiB lacuna |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for r in rows:
        mark = ""
        if "note" in r:
            notes.append(r["note"])
            mark = f" [{len(notes)}]"
        own = r.get("lacuna_seconds")
        cells = [
            r["what"] + mark,
            f"{r['torch_seconds']:.3f} s",
            f"{own:.3f} s" if own else "–",
            f"{r['ratio']:.2f}x" if own else "–",
            f"{r['tokens'] / r['torch_seconds']:.1f}",
            f"{r['tokens'] / own:.1f}" if own else "–",
            f"{r['torch_peak_mib']:.0f}",
            f"{r['lacuna_peak_mib']:.0f}" if own else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [""] * bool(notes) + [f"[{i}] {note}." for i, note in enumerate(notes, 1)]
    return "\n".join(lines)


def processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------- finding what is needed


def find_python(asked):
    """An interpreter that has PyTorch: the asked one, this one, or that of tools/.venv."""
    if asked:
        return asked
    if all(importlib.util.find_spec(package.split(">")[0]) for package in PACKAGES):
        return sys.executable
    python = VENV / "bin/python"
    if not python.exists():
        print(f"making {VENV} with {', '.join(PACKAGES)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def find_lacuna(asked):
    """The binary: the asked one, or the release build of this repository, made if need be."""
    if asked:
        return asked
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "lacuna"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release/lacuna")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a LLaMA model as a Hugging Face folder")
    parser.add_argument("--mask-id", type=int, default=0, help="token used as the mask (default 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of both (default: all)")
    parser.add_argument("--only", choices=["forward", "generate"], help="measure only this")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="forward: batches (default 1 4)")
    parser.add_argument("--context", type=int, nargs="+", default=[128, 512], metavar="L",
                        help="forward: sequence lengths (default 128 512)")
    parser.add_argument("--length", type=int, default=127, help="generate: new tokens (default 127, after one given)")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128], metavar="T",
                        help="generate: denoising steps (default 32 128)")
    parser.add_argument("--top-p", type=float, default=0.9, help="generate: nucleus (default 0.9)")
    parser.add_argument("--torch-steps", type=int, metavar="N",
                        help="generate: measure at most N steps of PyTorch's loop and scale to T; the table says so")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each program (default 3)")
    parser.add_argument("--inner", type=int, default=3, help="forward: passes a turn (default 3)")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--torch-only", action="store_true", help="leave lacuna out")
    parser.add_argument("--python", metavar="FILE", help="an interpreter that has torch and transformers")
    parser.add_argument("--json", metavar="FILE", help="write every measurement here")
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min([args.threads, args.length, args.repeats, args.inner, *args.batch, *args.context, *args.steps]) < 1:
        parser.error("threads, lengths, batches, steps and repeats are at least 1")
    if args.torch_steps is not None and args.torch_steps < 1:
        parser.error("--torch-steps is at least 1")
    return args


def main():
    args = arguments()
    if args.serve_torch:
        serve_torch(args)
        return
    python = find_python(args.python)
    args.lacuna = None if args.torch_only else find_lacuna(args.lacuna)
    work = []
    if args.only != "generate":
        work += [(compare_forward, (b, n)) for n in args.context for b in args.batch]
    if args.only != "forward":
        work += [(compare_generate, (steps,)) for steps in args.steps]
    about = {"processor": processor(), "threads": args.threads, "repeats": args.repeats}
    rows = []
    for compare, what in work:
        torch_process = TorchProcess(python, args)  # a fresh one, whose peak memory is of this work only
        about.update(torch=torch_process.about["torch"], transformers=torch_process.about["transformers"])
        rows.append(compare(args, torch_process, *what))
        torch_process.close()
    print(markdown(about, rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
