#!/usr/bin/env python3
"""Fine-tunes a model on GSM8K as the paper does, and asks it test problems as it learns.

The answers are the equations of the worked solutions and the final answer, as in the paper: the calculator notes
`<<12/60=0.2>> <<0.2*50=10>> #### 10`. The model is a left-to-right one (or one that was adapted before): `lacuna sft` with
low-rank adapters, attention bidirectional, shift kept; a model without a mask token gets an ordinary unused one (--mask-id). Every --ask steps an adapter is
merged and asked --problems test problems. docs/experiments/ gets gsm8k.json (every number), gsm8k-loss.svg and a table between the
markers of gsm8k.md.

A run that was stopped goes on from its last checkpoint; what was asked is not asked again.

examples:
  tools/gsm8k.py target/smollm2 train.jsonl test.jsonl --mask-id 3 --steps 400 --ask 200
  tools/gsm8k.py diffugpt-m train.jsonl test.jsonl --device cuda --batch 64 --steps 7000 --ask 1000 --problems 1319 --denoise 64 \
      --work target/gsm8k-diffugpt
  tools/gsm8k.py target/smollm2 train.jsonl test.jsonl --mask-id 3 --dry-run
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare.setup import ROOT, find_lacuna, processor
from experiment.document import insert
from experiment.results import read_log
from experiment.running import leave_ctrl_c_to_commands, run
from experiment.settings import hold_to

HELD_OUT = 200  # of the training problems, to validate on


def pairs(path):
    """Questions with their equations; problems without any are left out."""
    found, without = [], 0
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
            final = answer.split("####")[1].strip()
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise SystemExit(f"{path} line {number}: expected an object with question, and answer with ####") from None
        equations = re.findall(r"<<[^<>]*>>", answer)
        if not equations:
            without += 1
            continue
        found.append({"prompt": question, "answer": " ".join([*equations, "####", final])})
    if not found:
        raise SystemExit(f"{path}: no problem with equations")
    return found, without


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def train(args):
    folder = args.work / "run"
    command = [args.lacuna, "sft", "--output", folder, "--device", args.device]
    if (folder / f"checkpoints/step-{args.steps}").is_dir():
        return folder
    if list(folder.glob("checkpoints/step-*")):
        command += ["--resume"]
    else:
        if not args.dry_run:
            shutil.rmtree(folder, ignore_errors=True)  # without a checkpoint there is nothing to go on from
        command += ["--model", args.model, "--data", args.work / "train.jsonl", "--validation", args.work / "held-out.jsonl"]
        command += [*args.mask, "--lora-rank", args.rank, "--length", args.length, "--too-long", "skip"]
        command += ["--batch", args.batch, "--steps", args.steps, "--lr", args.lr, "--seed", args.seed]
        command += ["--save-every", args.ask, "--keep-last", args.steps // args.ask + 1, "--validate-every", args.ask]
        command += ["--validation-sequences", 32, "--validation-draws", 2]
        command += [] if args.train_embedding else ["--freeze-embedding"]
    run(command, args.dry_run)
    return folder


def ask(args, folder, step):
    """Accuracy of a checkpoint, and what it comes from."""
    out = args.work / f"asked-{step}"
    if not (out / "results.jsonl").exists():
        model = args.model
        if step:
            model = args.work / "merged"
            if not args.dry_run:
                shutil.rmtree(model, ignore_errors=True)
            adapter = folder / f"checkpoints/step-{step}"
            run([args.lacuna, "merge", "--model", args.model, "--adapter", adapter, "--output", model], args.dry_run)
        # The canvas is as long as those that were trained on: the rest of an answer is end tokens.
        command = [args.lacuna, "eval", "gsm8k", "--model", model, *args.mask, "--form", "sft"]
        command += ["--data", args.work / "test.jsonl", "--limit", args.problems, "--length", args.answer, "-T", args.denoise]
        command += ["--too-long", "skip", "--output", out, "--device", args.device]
        run([*command, "--resume"] if out.exists() else command, args.dry_run)
    if args.dry_run:
        return None
    lines = {line["metric"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    accuracy = lines["accuracy"]
    return {"step": step, "accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"],
            "answered": lines["answered"]["value"], "nfe": accuracy["nfe"], "items": accuracy["items"]}  # fmt: skip


def minutes(folder):
    """What the steps took, and nothing else."""
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return sum(step["tokens"] / step["tokens_per_second"] for step in steps if "tokens_per_second" in step) / 60


def words(args, about, asked, measured):
    rows = []
    for one in asked:
        v = measured.get(one["step"])
        nelbo = f"{v['nelbo']:.3f} ± {v['standard_error']:.3f}" if v else ""
        loss = f"{v['unweighted']:.3f}" if v else ""
        rows.append(
            f"| {one['step']} | {one['step'] * args.batch} | {nelbo} | {loss} | {100 * one['answered']:.0f} % |"
            f" {100 * one['accuracy']:.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f}) |"
        )
    return "\n".join([
        f"{about['model']}, adapters of rank {args.rank}{'' if args.train_embedding else ', embedding frozen'}; {about['train']} training"
        f" problems, {args.steps} steps of {args.batch}, {args.length} tokens, peak learning rate {args.lr:g}; {asked[0]['items']} test problems,"
        f" T = {args.denoise}, greedy, random order; {about['lacuna']}, {about['processor']}, {about['minutes']:.0f} minutes of training.",
        "",
        "![Loss against steps](gsm8k-loss.svg)",
        "",
        "| steps | problems seen | held-out NELBO, nats a token | unweighted | write #### | right (95 %) |",
        "|---:|---:|---:|---:|---:|---:|",
        *rows,
    ])  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="what is fine-tuned")
    parser.add_argument("train", type=Path, metavar="TRAIN.jsonl", help="GSM8K's training problems")
    parser.add_argument("test", type=Path, metavar="TEST.jsonl", help="its test problems")
    whole = [("steps", 400, "optimiser steps"), ("ask", 200, "steps between questions"), ("batch", 8, "problems of a step"),
             ("length", 192, "tokens of a training example"), ("answer", 64, "tokens of an answer that is asked for"),
             ("rank", 16, "of the adapters"), ("problems", 100, "test problems"), ("denoise", 32, "denoising steps T"),
             ("seed", 0, "of it all")]  # fmt: skip
    for name, default, what in whole:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument("--mask-id", type=int, metavar="N",
                        help="the token that masks (default: the model's); 3 is one of SmolLM2's that no text holds")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    parser.add_argument("--train-embedding", action="store_true", help="as the paper; slower, and more memory")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--work", type=Path, default=ROOT / "target/gsm8k", metavar="DIR", help="(default target/gsm8k)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/experiments", metavar="DIR", help="a folder with gsm8k.md")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    args = parser.parse_args()
    for path in (args.model / "config.json", args.train, args.test):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    for name, *_ in whole:
        if getattr(args, name) < (0 if name == "seed" else 1):
            parser.error(f"--{name} is at least {0 if name == 'seed' else 1}")
    if args.steps % args.ask:
        parser.error("--ask divides --steps")
    args.work = args.work.resolve()
    args.mask = [] if args.mask_id is None else ["--mask-id", args.mask_id]
    return args


def settings(args):
    keys = ("steps", "ask", "batch", "length", "answer", "rank", "lr", "denoise", "problems", "mask_id", "train_embedding", "seed")
    return {key: getattr(args, key) for key in keys}


def main():
    args = arguments()
    args.lacuna = args.lacuna or ("lacuna" if args.dry_run else find_lacuna(None))
    train_rows, without = pairs(args.train)
    test_rows, _ = pairs(args.test)
    if len(train_rows) <= HELD_OUT:
        raise SystemExit(f"{args.train}: {len(train_rows)} problems with equations, more than {HELD_OUT} are needed")
    files = {key: str(getattr(args, key).resolve()) for key in ("model", "train", "test")}
    hold_to(args.work, settings(args) | files, start=not args.dry_run)
    leave_ctrl_c_to_commands()
    if not args.dry_run:
        write(args.work / "train.jsonl", train_rows[HELD_OUT:])
        write(args.work / "held-out.jsonl", train_rows[:HELD_OUT])
        write(args.work / "test.jsonl", test_rows)
    folder = train(args)
    asked = [ask(args, folder, step) for step in range(0, args.steps + 1, args.ask)]
    if args.dry_run:
        return
    measured, _ = read_log(folder / "log.jsonl")
    version = subprocess.run([args.lacuna, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    about = {"model": args.model.name, "train": len(train_rows) - HELD_OUT, "without_equations": without, "lacuna": version,
             "processor": processor(), "minutes": minutes(folder)}  # fmt: skip
    found = [{"step": step} | numbers for step, numbers in sorted(measured.items())]
    result = {"about": about, "settings": settings(args), "asked": asked, "validations": found}
    (args.docs / "gsm8k.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copyfile(folder / "loss.svg", args.docs / "gsm8k-loss.svg")
    insert(args.docs / "gsm8k.md", "gsm8k", words(args, about, asked, measured))
    print(words(args, about, asked, measured))


if __name__ == "__main__":
    main()
