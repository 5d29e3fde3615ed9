#!/usr/bin/env python3
"""Does lacuna eval score texts as its definitions say? An independent computation in PyTorch, side by side.

20 made-up questions, five in each published format (HellaSwag, WinoGrande, Social IQa, PIQA), and three short texts are
written to files and scored twice: by lacuna, and here, from the definitions in docs/evaluation.md, with transformers'
model in f32 on the CPU. Of lacuna nothing is used but the scores that are compared:

  parity      lacuna eval mc --parity, the released evaluator of "Scaling Diffusion Language Models via Adaptation from
              Autoregressive Models" (HKUNLP/DiffuLLaMA, evaluation/eval-diffugpt.py and eval_forward)
  paper       lacuna eval mc --scoring paper: the same score of texts with spaces where tokenizers expect them, over
              what was masked
  elbo        lacuna eval mc --scoring elbo: the bound, with the same times and masks for all options
  ar          lacuna eval mc --ar: from left to right
  nelbo       lacuna eval nelbo of the texts, with --times stratified and independent, and with --ar: nats a token

Which tokens are masked follows from the seed: random numbers are Philox4x32-10, written here once more and checked
against the known answers of its authors. Row i of the logits predicts token i + 1. SmolLM2 has no mask token; token 0,
<|endoftext|>, stands in for it, and some of the texts hold it.

The result is a Markdown table on standard output; what differs and progress go to standard error. PyTorch is looked
for in the interpreter that runs this, else in tools/.venv, which is made on first use (a few gigabytes from PyPI).

examples:
  tools/eval_parity.py                                      all of it on target/smollm2, some minutes on one core
  tools/eval_parity.py --only parity,nelbo --json parity.json
  tools/eval_parity.py --levels 32 --seed 1 --lacuna target/release/lacuna
  tools/eval_parity.py --model gpt2 --mask-id 10541         another model, in a folder that transformers reads

Exit codes: 0 all agree, 1 something differs or a program failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare.setup import MODEL, PACKAGES, find_lacuna, find_model, find_python, say
from parity.philox import check_philox
from parity.questions import QUESTIONS, READERS, TEXT_LENGTH, TEXTS
from parity.reference import Reference

# Largest relative difference of a score. Two f32 computations are mostly a hundred times nearer; on the shortest
# question of Social IQa, PyTorch's f32 is half of it away from f64.
TOLERANCE = 2e-4
CHOICE_MODES = {
    "parity": ["--parity"],
    "paper": ["--scoring", "paper"],
    "elbo": ["--scoring", "elbo"],
    "ar": ["--ar"],
}
TEXT_MODES = {
    "stratified": ["--times", "stratified"],
    "independent": ["--times", "independent"],
    "ar": ["--ar"],
}
MODES = [*CHOICE_MODES, "nelbo"]
MOST_LEVELS = 2**16 - 1


# ---------------------------------------------------------------- lacuna


def one_line(text):
    return " ".join(text.split())


def lacuna(args, work, name, lines, *words):
    """Runs lacuna eval on a file of `lines` and gives its items, by id."""
    source, target = work / f"{name}.jsonl", work / f"{name}.out"
    source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    command = [args.lacuna, "eval", *words, "--data", source, "--output", target, "--quiet", "--seed", args.seed]
    command += ["--model", args.model, "--mask-id", args.mask_id, "--shift"]
    command += ["--device", "cpu", "--threads", args.threads]
    command = [str(word) for word in command]
    what = f"lacuna eval {' '.join(words)}"
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{args.lacuna} does not start: {error.strerror}") from None
    if done.returncode != 0:
        reason = one_line(done.stderr)[-2000:] or "it says no reason"
        raise SystemExit(f"{what} failed with {done.returncode}: {reason}")
    try:
        items = [json.loads(line) for line in (target / "items.jsonl").read_text(encoding="utf-8").splitlines()]
        return {item["id"]: item for item in items}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{what}: items.jsonl is not as expected: {type(error).__name__}: {error}") from None


def field(what, items, number, *keys):
    """What lacuna says of item `number`, which counts from 0."""
    value = items.get(str(number + 1))
    try:
        for key in keys:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        raise SystemExit(f"{what}: items.jsonl has no {'.'.join(map(str, keys))} of item {number + 1}") from None
    return value


# ---------------------------------------------------------------- comparing


def apart(got, expected):
    """The relative difference of two numbers."""
    if not isinstance(got, (int, float)) or not math.isfinite(got):
        return math.inf
    largest = max(abs(got), abs(expected))
    return abs(got - expected) / largest if largest > 0 else 0.0


def near(scores):
    """Whether the two best scores are as good as equal."""
    first, second = sorted(scores)[:2]
    return apart(first, second) <= TOLERANCE


class Row:
    """A line of the table."""

    def __init__(self, name, mode):
        self.name, self.mode = name, mode
        self.items, self.worst, self.same, self.wrong = [], 0.0, None, 0

    def fault(self, words):
        self.wrong += 1
        say(f"WRONG {self.name}, {self.mode}, {words}")

    def compare(self, number, got, expected):
        """Scores of item `number` from both sides."""
        if len(got) != len(expected):
            where = f"{self.name}, {self.mode}, item {number + 1}"
            raise SystemExit(f"{where}: {len(got)} scores, expected {len(expected)}")
        self.items.append({"item": number + 1, "lacuna": got, "reference": expected})
        for place, (a, b) in enumerate(zip(got, expected)):
            error = apart(a, b)
            self.worst = max(self.worst, error)
            if error > TOLERANCE:
                self.fault(f"item {number + 1}, score {place + 1}: {a}, expected {b:.8g}: {error:.1e} apart")

    def choice(self, number, chosen, scores):
        """The option that lacuna chose, and the scores that it should have chosen by."""
        best = min(range(len(scores)), key=scores.__getitem__)
        self.same = (self.same or 0) + (chosen == best)
        self.items[-1] |= {"chosen": chosen, "best": best}
        if chosen != best and not near(scores):
            self.fault(f"item {number + 1}: option {chosen} chosen, expected {best}")
        elif chosen != best:
            say(f"note: {self.name}, {self.mode}, item {number + 1}: the two best scores are as good as equal")

    def markdown(self):
        same = "" if self.same is None else f"{self.same} of {len(self.items)}"
        return f"| {self.name} | {self.mode} | {len(self.items)} | {self.worst:.1e} | {same} |"

    def numbers(self):
        worst = self.worst if math.isfinite(self.worst) else None
        out = {"format": self.name, "mode": self.mode, "items": len(self.items), "largest_difference": worst}
        return out | {"same_choices": self.same, "faults": self.wrong, "scores": self.items}


def compare_choice(args, work, reference, name, mode):
    row, lines = Row(name, mode), QUESTIONS[name]
    levels = [] if mode == "ar" else ["--levels", str(args.levels)]
    items = lacuna(args, work, f"{name}-{mode}", lines, "mc", "--format", name, *CHOICE_MODES[mode], *levels)
    if len(items) != len(lines):
        row.fault(f"{len(items)} items, expected {len(lines)}")
    for number, line in enumerate(lines):
        question = READERS[name](line, mode == "parity")
        scores = reference.scores(mode, number, question)
        what = f"lacuna eval mc, {name}, {mode}"
        row.compare(number, field(what, items, number, "scores"), scores)
        row.choice(number, field(what, items, number, "chosen"), scores)
        if field(what, items, number, "gold") != question.gold:
            row.fault(f"item {number + 1}: the right option is {question.gold}")
    return row


def compare_texts(args, work, reference, kind):
    row, sequences = Row("texts", f"nelbo {kind}"), reference.sequences()
    words = ["nelbo", *TEXT_MODES[kind], "--length", str(TEXT_LENGTH)]
    words += [] if kind == "ar" else ["--draws", str(args.levels)]
    items = lacuna(args, work, f"texts-{kind}", [{"text": text} for text in TEXTS], *words)
    if len(items) != len(sequences):
        row.fault(f"{len(items)} sequences, expected {len(sequences)}")
    for number, clean in enumerate(sequences):
        what = f"lacuna eval nelbo, {kind}"
        nats, tokens = (field(what, items, number, "metrics", "nats/token", i) for i in (0, 1))
        if tokens != len(clean) - 1:
            row.fault(f"sequence {number + 1}: {tokens} tokens, expected {len(clean) - 1}")
        row.compare(number, [nats / tokens if tokens else math.nan], [reference.bound(kind, number, clean)])
    return row


# ---------------------------------------------------------------- main


def modes(text):
    wanted = text.split(",")
    for mode in wanted:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r}: expected some of {','.join(MODES)}")
    return [mode for mode in MODES if mode in wanted]


def whole(least, most):
    """A parser of one whole number."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} to {most}")
        return value

    return parse


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--model", metavar="DIR", help="a model as a Hugging Face folder (default: target/smollm2)")
    p.add_argument("--mask-id", type=whole(0, 2**31 - 1), default=0, metavar="ID",
                   help="token used as the mask (default 0)")  # fmt: skip
    p.add_argument("--only", type=modes, default=MODES, metavar="MODES",
                   help=f"some of {','.join(MODES)} (default: all)")  # fmt: skip
    p.add_argument("--levels", type=whole(1, MOST_LEVELS), default=8, metavar="T",
                   help="masks of an option or text (default 8)")  # fmt: skip
    p.add_argument("--seed", type=whole(0, 2**64 - 1), default=2**32 + 7, metavar="N",
                   help="decides what is masked (default 4294967303: both words of the key are in use)")  # fmt: skip
    p.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help="threads of both (default 1)")
    p.add_argument("--json", metavar="FILE", help="all scores of both as one JSON object")
    p.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    p.add_argument("--python", metavar="FILE", help="an interpreter that has torch and transformers")
    p.add_argument("--torch-index", metavar="URL", help="index that pip takes torch from when it sets up tools/.venv")
    p.add_argument("--found", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args()


def use_python(args):
    """Goes on in an interpreter that has the packages."""
    if args.found:
        return
    try:
        python = find_python(args.python, args.torch_index)
    except SystemExit as error:
        if args.python:
            raise
        reason = one_line(str(error)).split(". ")[0]
        packages = " ".join(f"'{package}'" if ">" in package else package for package in PACKAGES)
        raise SystemExit(f"{reason}; pip install {packages}, and name that Python with --python") from None
    if python != sys.executable:
        os.execvp(python, [python, __file__, *sys.argv[1:], "--found"])


def load_reference(args):
    try:
        return Reference(args.model, args.levels, args.seed, args.mask_id, args.threads)
    except ImportError as error:
        packages = ", ".join(PACKAGES)
        raise SystemExit(f"{one_line(str(error))}; install {packages}, or name a Python with --python") from None
    except Exception as error:  # those of three libraries, which are of many kinds
        raise SystemExit(f"{args.model}: transformers does not load it: {one_line(str(error))[:500]}") from None


def version(binary):
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "lacuna"
    except OSError as error:
        raise SystemExit(f"--lacuna {binary}: it does not start: {error.strerror}") from None


def measure(args):
    """Compares; the exit code."""
    check_philox()
    args.model = find_model(args.model or os.path.relpath(MODEL), False, None)
    if args.lacuna:
        find_lacuna(args.lacuna)
    use_python(args)
    if args.json:
        try:
            open(args.json, "a", encoding="utf-8").close()
        except OSError as error:
            raise SystemExit(f"--json {args.json}: cannot be written: {error.strerror}") from None
    args.lacuna = os.path.abspath(find_lacuna(args.lacuna))
    program = version(args.lacuna)
    reference = load_reference(args)
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        jobs = [(name, mode) for name in QUESTIONS for mode in args.only if mode != "nelbo"]
        for name, mode in jobs:
            say(f"{name}, {mode}")
            rows.append(compare_choice(args, work, reference, name, mode))
        for kind in TEXT_MODES if "nelbo" in args.only else []:
            say(f"texts, nelbo {kind}")
            rows.append(compare_texts(args, work, reference, kind))
    model = Path(args.model).resolve().name
    about = {"model": model, "levels": args.levels, "seed": args.seed, "mask_id": args.mask_id, "program": program}
    about |= {"torch": reference.torch.__version__, "transformers": transformers.__version__, "tolerance": TOLERANCE}
    print(f"{program} and PyTorch {about['torch']}, transformers {about['transformers']}, f32 on the CPU: {model}, "
          f"T = {args.levels}, seed {args.seed}, mask token {args.mask_id}\n")  # fmt: skip
    print("| format | mode | items | largest relative difference of a score | same choices |")
    print("|---|---|---:|---:|---:|")
    for row in rows:
        print(row.markdown())
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(about | {"rows": [row.numbers() for row in rows]}, file, indent=1)
            file.write("\n")
    wrong = sum(row.wrong for row in rows)
    say(f"{wrong} things differ" if wrong else f"all scores agree within {TOLERANCE:g}")
    return int(wrong > 0)


def main():
    args = arguments()
    try:
        return measure(args)
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
