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
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare.setup import ROOT, find_lacuna, processor
from experiment.conditions import CONDITIONS, CONFIDENCE
from experiment.figure import plot, use_matplotlib
from experiment.document import insert
from experiment.results import analyse, describe_model, read_log
from experiment.settings import hold_to
from experiment.words import generated, verdict

# What lacuna pack --held-out calls its second file.
HELD_OUT = "{stem}-held-out{suffix}"
HELD_OUT_PERCENT = 5

# ---------------------------------------------------------------- running


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
        if not args.plot.is_file():
            parser.error(f"{args.plot}: no such file")
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
    insert(args.docs / "adaptation.md", "adaptation", generated(about, result))
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
    files = {"model": str(Path(args.model).resolve()), "text": str(Path(args.text).resolve())}
    hold_to(args.work, settings(args) | files)
    if not args.report_only:
        pack(args)
        run_all(args, runs)
    report(args, runs)


if __name__ == "__main__":
    main()
