#!/usr/bin/env python3
"""lacuna side by side with the paper's algorithms in PyTorch on the CPU: same weights, same threads, same work, one run.

  forward    a plain bidirectional forward pass: all logits of a batch, no cache
  generate   the paper's denoising loop: T forwards over all positions; at every step each row is drawn, and each masked
             position keeps its draw with probability 1/s. lacuna draws the same distribution by commit plan
  train      a training step: forward, loss of the masked tokens weighted 1/t, backward, clipping, AdamW, at several shares
             of masked tokens. PyTorch takes the logits of all positions, as the reference trainers do
  sample     drawing tokens from 128 rows of 50,257 logits with top-p 0.9: in PyTorch by the operations of the paper's
             released sampler (sort, softmax, cumulative sum, scatter, Categorical), in lacuna by bench kernels; once on
             peaked logits (12 x^3, x uniform in -1 .. 1) and once on near-flat ones (x / 10)

Everything is f32 arithmetic. PyTorch runs transformers' LlamaForCausalLM with scaled-dot-product attention; nothing is
compiled. The two programs take turns, each in a process of its own; loading and a warm-up are not counted; peak memory is
the most that the whole process had resident. With --llama-diffusion and --llama-model llama.cpp's diffusion example is
measured too. The result is a Markdown table on standard output; progress goes to standard error. Ctrl-C ends it with what
is measured by then.

PyTorch is looked for in the interpreter that runs this, else in tools/.venv, which is made on first use (a few gigabytes
from PyPI, whose build for Linux carries CUDA; --torch-index names the index of the smaller CPU build).

examples:
  tools/compare_torch.py                                    all of it, about ten minutes on two cores
  tools/compare_torch.py --goals --json torch.jsonl         what is met; lines as lacuna bench writes them
  tools/compare_torch.py --docs                             and the table of docs/performance.md
  tools/compare_torch.py --only forward,sample --threads 1
  tools/compare_torch.py --torch-steps 32                   long loops of PyTorch in part, scaled; the table says so
  tools/compare_torch.py --only generate --llama-diffusion llama-diffusion-cli --llama-model llada.gguf

Exit codes: 0 done, 1 a program failed or a goal is missed (--goals), 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare import interrupts, llama_cpp, programs, table, torch_side
from compare.lines import Lines
from compare.measure import Measurement
from compare.setup import ROOT, commit, find_lacuna, find_model, find_python, load, say

PARTS = ["forward", "generate", "train", "sample"]
DOCS = ROOT / "docs/performance.md"
# With --quick: whether it works, in seconds; no number of it means anything.
QUICK = {
    "context": [16], "batch": [1], "canvas": 16, "steps": [4], "masked": [0.5], "train_batch": 2, "train_length": 16,
    "train_steps": 2, "train_warmup": 1, "repeats": 2, "inner": 2,
}  # fmt: skip


def parts(text):
    wanted = text.split(",")
    for part in wanted:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r}: expected some of {','.join(PARTS)}")
    return [part for part in PARTS if part in wanted]


def numbers(kind, least):
    """A parser of comma-separated numbers, each at least `least`."""

    def parse(text):
        try:
            values = [kind(word) for word in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(least <= v < 2**31 for v in values):
            raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas, each at least {least}")
        return values

    return parse


def at_least(least):
    """A parser of one whole number."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least {least}")
        return value

    return parse


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    what = p.add_argument_group("what is measured")
    what.add_argument("--only", type=parts, default=PARTS, metavar="PARTS", help="some of forward,generate,train,sample (default: all)")
    what.add_argument("--quick", action="store_true", help="small sizes: whether it works; the numbers mean nothing")
    what.add_argument("--model", metavar="DIR", help="a LLaMA model as a Hugging Face folder (default: target/smollm2)")
    what.add_argument("--made-up", action="store_true", help="random weights in the shape of SmolLM2-135M, in target/smollm2-shape")
    what.add_argument("--mask-id", type=at_least(0), default=0, metavar="ID", help="token used as the mask (default 0)")
    what.add_argument("--threads", type=at_least(1), default=os.cpu_count(), metavar="N", help="threads of both (default: all)")
    what.add_argument("--repeats", type=at_least(1), default=3, metavar="N", help="turns of each program (default 3)")
    what.add_argument("--batch", type=numbers(int, 1), default=[1, 4], metavar="N,..", help="forward: batches (default 1,4)")
    what.add_argument("--context", type=numbers(int, 1), default=[128, 512], metavar="L,..", help="forward: lengths (default 128,512)")
    what.add_argument("--inner", type=at_least(1), default=3, metavar="N", help="forward, sample: passes a turn, their median (default 3)")
    what.add_argument("--canvas", type=at_least(2), default=128, metavar="L", help="generate: length, the first token given (default 128)")
    what.add_argument("--steps", type=numbers(int, 1), default=[32, 128], metavar="T,..", help="generate: denoising steps (default 32,128)")
    what.add_argument("--top-p", type=float, default=0.9, metavar="P", help="generate: nucleus (default 0.9)")
    what.add_argument("--torch-steps", type=at_least(1), metavar="N", help="generate: time at most N steps of PyTorch's loop, scaled to T")
    what.add_argument("--masked", type=numbers(float, 0.0), default=[0.15, 0.5, 1.0], metavar="SHARE,..",
                      help="train: shares of the tokens (default 0.15,0.5,1)")
    what.add_argument("--attention", type=lambda t: t.split(","), default=["sdpa"], metavar="KINDS",
                      help="train: PyTorch's attention, sdpa or eager or both (default sdpa, the faster)")
    what.add_argument("--train-batch", type=at_least(1), default=4, metavar="N", help="train: sequences of a step (default 4)")
    what.add_argument("--train-length", type=at_least(2), default=128, metavar="L", help="train: tokens of a sequence (default 128)")
    what.add_argument("--train-steps", type=at_least(1), default=3, metavar="N", help="train: steps a turn, their median (default 3)")
    what.add_argument("--train-warmup", type=at_least(1), default=1, metavar="N", help="train: steps before, each turn (default 1)")
    out = p.add_argument_group("what is written")
    out.add_argument("--json", metavar="FILE", help="a line a measurement, as lacuna bench writes them, as they come")
    out.add_argument("--docs", nargs="?", const=str(DOCS), metavar="FILE", help="put the table between the markers of FILE (docs/performance.md)")
    out.add_argument("--goals", action="store_true", help="say which goals are met; exit code 1 where one is missed")
    who = p.add_argument_group("programs")
    who.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    who.add_argument("--python", metavar="FILE", help="an interpreter that has torch and transformers")
    who.add_argument("--torch-index", metavar="URL", help="index that pip takes torch from when it sets up tools/.venv")
    who.add_argument("--torch-only", action="store_true", help="leave lacuna out")
    who.add_argument("--lacuna-only", action="store_true", help="leave PyTorch out")
    who.add_argument("--llama-diffusion", metavar="FILE", help="llama.cpp's llama-diffusion-cli, with --llama-model GGUF")
    who.add_argument("--llama-model", metavar="GGUF", help="a model that it knows: Dream, LLaDA, RND1")
    p.add_argument("--serve", choices=PARTS, help=argparse.SUPPRESS)
    p.add_argument("--write-made-up", metavar="DIR", help=argparse.SUPPRESS)
    return p


def arguments(words=None):
    p = parser()
    args = p.parse_args(words)
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) == p.get_default(name):
                setattr(args, name, value)
    if not 0 < args.top_p <= 1:
        p.error(f"--top-p {args.top_p}: expected a probability above 0, at most 1")
    for share in args.masked:
        if not 0 < share <= 1 or round(share * args.train_length) < 1:
            p.error(f"--masked {share:g}: expected a share up to 1 that is one token of {args.train_length} or more")
    if not set(args.attention) <= {"sdpa", "eager"}:
        p.error(f"--attention {','.join(args.attention)}: expected sdpa, eager or both with a comma")
    if args.torch_only and args.lacuna_only:
        p.error("--torch-only and --lacuna-only leave nothing to measure")
    if args.model and args.made_up:
        p.error("--model and --made-up: one of the two")
    if bool(args.llama_diffusion) != bool(args.llama_model):
        p.error("--llama-diffusion FILE and --llama-model GGUF go together")
    if args.goals and args.quick:
        p.error("--goals are for the full sizes: leave --quick out")
    if args.docs and Path(args.docs).resolve() == DOCS and (args.quick or args.only != PARTS or args.torch_only or args.lacuna_only):
        p.error("--docs: a part cannot stand for the whole; leave --quick, --only and --...-only out, or name another FILE")
    return args


def command(args):
    """The command that does the same again, without what is of one machine."""
    p, words = parser(), ["python3", "tools/compare_torch.py"]
    for name in ("made_up", "quick", "torch_only", "lacuna_only"):
        words += ["--" + name.replace("_", "-")] * getattr(args, name)
    lists = ("only", "batch", "context", "steps", "masked", "attention")
    for name in ("mask_id", "threads", "repeats", "inner", "canvas", "top_p", "torch_steps", "train_batch", "train_length",
                 "train_steps", "train_warmup", *lists):  # fmt: skip
        value, usual = getattr(args, name), p.get_default(name)
        if args.quick and value == QUICK.get(name) or value == usual and name != "threads":
            continue
        words += ["--" + name.replace("_", "-"), ",".join(f"{v}" for v in value) if name in lists else str(value)]
    if args.asked_model:
        model = Path(args.asked_model).resolve()
        words += ["--model", str(model.relative_to(ROOT)) if model.is_relative_to(ROOT) else model.name]
    if args.llama_diffusion:
        words += ["--llama-diffusion", Path(args.llama_diffusion).name, "--llama-model", Path(args.llama_model).name]
    return shlex.join(words + ["--docs"] * (args.docs is not None))


def measure(args):
    """Looks for everything first, then measures; the exit code."""
    if args.docs:
        table.markers(args.docs)
    if args.llama_diffusion:
        llama_cpp.gguf_facts(args.llama_model)
        if not os.access(args.llama_diffusion, os.X_OK):
            raise SystemExit(f"--llama-diffusion {args.llama_diffusion}: no program there")
    # Made-up weights are written by PyTorch's interpreter.
    wants_python = not args.lacuna_only or args.made_up
    if args.model or not args.made_up:
        find_model(args.model, False, None)
    lines = Lines(args.json)
    args.lacuna = None if args.torch_only else find_lacuna(args.lacuna)
    args.python = find_python(args.python, args.torch_index) if wants_python else None
    args.asked_model = args.model
    args.model = find_model(args.model, args.made_up, args.python)
    args.version = None
    if args.lacuna:
        args.version = programs.run([args.lacuna, "--version"]).output.removeprefix("lacuna").strip()
    busy = load()
    if busy is not None and busy > 0.5:
        say(f"the machine is busy ({busy:.1f} threads want to run): times will be noisy, PyTorch's more than lacuna's")
    measurement = Measurement(args, lines, commit(args.lacuna) if args.lacuna else None)
    stopped = False
    lines.begin()
    try:
        measurement.run()
        if args.llama_diffusion:
            llama_cpp.measure(measurement)
    except KeyboardInterrupt:
        stopped = True
    finally:
        programs.stop_all()
    if measurement.rows:
        text = table.markdown(measurement, command(args))
        print(text)
        if args.docs and not stopped:
            table.write_docs(args.docs, text)
    missed = False
    if args.goals:
        for met, words in table.goals(measurement.rows):
            print(words)
            missed |= met is False
    if stopped:
        kept = f" and in {args.json}" if args.json else ""
        say(f"interrupted; what was measured is above{kept}" + (f"; {args.docs} is as it was" if args.docs else ""))
        return 130
    return int(missed)


def main():
    args = arguments()
    if args.serve:
        torch_side.serve(args)
        return 0
    if args.write_made_up:
        torch_side.write_made_up(args.write_made_up)
        return 0
    for name in (signal.SIGINT, signal.SIGTERM):  # also where it was started with them ignored, in the background
        signal.signal(name, interrupts.handler)
    try:
        return measure(args)
    except KeyboardInterrupt:
        programs.stop_all()
        say("interrupted before anything was measured")
        return 130


if __name__ == "__main__":
    sys.exit(main())
