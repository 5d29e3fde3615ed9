"""Parts 9 and 10 of tools/gpu_check.sh, on request: training runs of minutes on the card, by the lacuna binary alone (no PyTorch).

  retrain   the bundled model anew from a text: left to right from random weights for a third of the time, then adapted to
            diffusion; with --model DIR that left-to-right model is adapted, and nothing comes before
  smollm2   SmolLM2-135M, as tools/fetch_smollm2.py writes it to --model DIR, adapted on a text

The text is packed with the model's tokenizer, its last 5 % held out and validated on. As many steps are planned as fit the
time, by what a step of `lacuna bench train` takes; --steps N plans N. A run whose time is over gets Ctrl-C, writes its
checkpoint and counts as far as it came. The runs lie in a folder named after the part, beside the file of results, which also
gets their logs and curves: PART-adapt-log.jsonl, PART-adapt-loss.svg.
"""

import json
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path

from common import Clock, Lines, arguments, brief, run_lacuna, say

# Batch, tokens of a sequence, peak learning rates left to right and for the adaptation.
DEFAULTS = {"retrain": (256, 128, 1e-3, 1.5e-3), "smollm2": (16, 512, 1e-3, 3e-4)}
MOST_STEPS = 20_000
# Of the time that a run has: the rest is for loading, validating and checkpoints.
SHARE = 0.8


def missing(args):
    """Why this cannot run, or None."""
    flag = f"--{args.part} '... "
    if not args.text:
        return f"no text: {flag}--text FILE' names one"
    if not Path(args.text).is_file():
        return f"no text: {args.text} is no file"
    if args.part == "smollm2" and not args.model:
        return f"no model: {flag}--model DIR' names a folder that tools/fetch_smollm2.py wrote"
    if args.model and not Path(args.model, "config.json").is_file():
        return f"no model: there is no config.json in {args.model}"
    return None


def read_log(path):
    """The steps and the validations of a run's log."""
    steps, validations = [], []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # cut short
                continue
            (validations if "validation" in found else steps).append(found)
    return steps, validations


def last_checkpoint(folder):
    found = [p for p in folder.glob("checkpoints/step-*") if p.name[5:].isdigit()]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def mean(numbers):
    numbers = [n for n in numbers if isinstance(n, (int, float))]
    return statistics.fmean(numbers) if numbers else None


class Runs:
    def __init__(self, args, lines):
        self.args, self.lines, self.out = args, lines, Path(args.output).resolve().parent
        self.folder = self.out / args.part
        batch, length, *self.rates = DEFAULTS[args.part]
        self.batch, self.length = args.batch or batch, args.length or length
        self.device = ["--device", args.device] + ([] if args.device == "cpu" else ["--dtype", "bf16"])

    def fail(self, what, error):
        self.lines.write(what=what, who="lacuna", error=error)
        say(f"{self.args.part}: {what}: {error}")

    def pack(self):
        """Whether the text is packed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokens, self.held_out = (self.folder / f"text{kind}.tokens" for kind in ("", "-held-out"))
        flags = ["pack", "--output", self.tokens, "--held-out", 5, "--json", self.args.text]
        flags += ["--tokenizer", self.args.model] if self.args.model else []
        found, error = run_lacuna(self.args.lacuna, flags, 120)
        if error:
            self.fail("pack", error)
        return not error

    def steps(self, model, seconds):
        """How many are planned for so many seconds, or an error."""
        if self.args.steps:
            return self.args.steps, None
        flags = ["bench", "train", *self.device, "--batch", self.batch, "--length", self.length, "--json"]
        flags += ["--model", model] if model else []
        found, error = run_lacuna(self.args.lacuna, flags, max(30.0, seconds))
        step = found[-1].get("seconds") if found else None
        if error or not step:
            return 0, error or "bench train says no seconds"
        return max(20, min(MOST_STEPS, int(SHARE * seconds / step))), None

    def train(self, what, command, model, rate, seconds, more=()):
        """The run's last checkpoint, or None where there is none."""
        args, folder = self.args, self.folder / what
        begun = time.monotonic()
        steps, error = self.steps(model, seconds)
        if error:
            self.fail(what, f"bench train: {error}")
            return None
        flags = [command, *self.device, "--data", self.tokens, "--validation", self.held_out, "--output", folder, "--quiet"]
        flags += ["--batch", self.batch, "--length", self.length, "--steps", steps, "--lr", rate, *more]
        flags += ["--model", model] if model else []
        words = [args.lacuna, *map(str, flags)]
        say(f"{args.part}: {what}: {' '.join(words)}")
        with open(self.out / f"{args.part}-{what}.err", "w", encoding="utf-8") as errors:
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
            interrupted = False
            try:
                code = process.wait(timeout=max(5.0, seconds - (time.monotonic() - begun)))
            except subprocess.TimeoutExpired:
                interrupted = True
                process.send_signal(signal.SIGINT)
                try:
                    code = process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
        return self.record(what, folder, steps, code, interrupted, time.monotonic() - begun, words)

    def record(self, what, folder, planned, code, interrupted, seconds, words):
        for name in ("log.jsonl", "loss.svg"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, self.out / f"{self.args.part}-{what}-{name}")
        steps, validations = read_log(folder / "log.jsonl")
        tenth = max(1, len(steps) // 10)
        row = {"what": what, "who": "lacuna", "planned_steps": planned, "steps": len(steps), "seconds": seconds}
        row.update(batch=self.batch, length=self.length, exit_code=code, command=" ".join(["lacuna", *words[1:]]))
        row.update(skipped_steps=sum(bool(s.get("skipped")) for s in steps))
        for name, part in (("first", steps[:tenth]), ("last", steps[-tenth:])):
            row[f"{name}_unweighted"] = mean(s.get("unweighted") for s in part)
        rates = [s["tokens_per_second"] for s in steps if s.get("tokens_per_second")]
        row["tokens_per_second"] = statistics.median(rates) if rates else None
        for name, found in (("first", validations[:1]), ("last", validations[-1:])):
            for line in found:
                row[f"{name}_nelbo"] = line["validation"].get("nelbo")
        checkpoint = last_checkpoint(folder)
        row["checkpoint"] = str(checkpoint.relative_to(self.out)) if checkpoint else None
        if interrupted:
            row["stopped"] = f"after {len(steps)} of {planned} steps: its time was over"
        elif code != 0:
            words = (self.out / f"{self.args.part}-{what}.err").read_text(encoding="utf-8", errors="replace").split("\n")
            row["error"] = f"exit code {code}: {next((w for w in words if w.strip()), 'no message')[:300]}"
        self.lines.write(**row)
        say(f"{self.args.part}: {what}: {len(steps)} steps, {row.get('error') or row.get('stopped') or 'done'}")
        return checkpoint

    def sample(self, model):
        """A text that the model writes."""
        flags = ["generate", *self.device, "--model", model, "--seed", 1, "--json"]
        found, error = run_lacuna(self.args.lacuna, flags, 60)
        self.lines.write(what="sample", who="lacuna", **({"error": error} if error else {"sample": found[-1].get("text")}))


def main():
    args = arguments(
        __doc__.splitlines()[0],
        part={"required": True, "choices": sorted(DEFAULTS)},
        lacuna={"required": True, "help": "the binary"},
        device={"default": "cuda", "help": "where to train (default cuda)"},
        text={"help": "the text, UTF-8"},
        model={"help": "the model to start from"},
        steps={"type": int, "default": 0, "help": "steps of each run (default: as many as fit)"},
        batch={"type": int, "help": "sequences of a step"},
        length={"type": int, "help": "tokens of a sequence"},
        check={"nargs": "?", "const": True, "help": "only say what is missing, with exit code 1"},
    )
    why = missing(args)
    if args.check:
        print(why or "")
        raise SystemExit(1 if why else 0)
    lines, clock = Lines(args.output, args.part), Clock(args.seconds)
    if why:
        lines.write(skipped=why)
        return
    runs = Runs(args, lines)
    try:
        if not runs.pack():
            return
        start, more = args.model, ["--add-mask-token"] if args.part == "smollm2" else []
        if not start:
            start = runs.train("left-to-right", "train-ar", None, runs.rates[0], clock.left() / 3, ["--from-scratch"])
            if not start:
                return
        final = runs.train("adapt", "adapt", start, runs.rates[1], max(5.0, clock.left() - 15), more)
        if final:
            runs.sample(final)
    except OSError as error:
        runs.fail("files", brief(error))


if __name__ == "__main__":
    main()
