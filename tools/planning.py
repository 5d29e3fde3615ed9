#!/usr/bin/env python3
"""Planning in miniature: a masked diffusion model against its autoregressive twin on the countdown game.

Both are GPT-2s of one shape, trained from scratch on the same problems (`lacuna data countdown`) for the same number of
steps, with several seeds, and asked the same problems of a disjoint test split:

  diffusion       lacuna sft --from-scratch: focal token weight, linear time weight; decoded in T steps, surest first,
                  with remasking ("Beyond autoregression: discrete diffusion for complex reasoning and planning")
  autoregressive  lacuna train-ar --from-scratch; decoded from left to right, the most probable token each time

Every answer is checked: equations true, each number used once, the target reached. docs/experiments/ gets planning.json
(every number) and a table between the markers of planning.md. What is finished is not run again; what was stopped goes on
from its last checkpoint. Ctrl-C stops after the step at hand.

examples:
  tools/planning.py                                three numbers, seeds 0 1 2, on the CPU
  tools/planning.py --jobs 2 --threads 1           the same, two models at a time
  tools/planning.py --dry-run
  tools/planning.py --numbers 4 --layers 3 --width 384 --heads 6 --length 58 --batch 1024 --device cuda
  tools/planning.py --report-only
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare.setup import ROOT, find_lacuna, processor
from experiment.document import insert
from experiment.results import interval
from experiment.running import at_a_time, leave_ctrl_c_to_commands, run
from experiment.settings import hold_to

KINDS = ["diffusion", "autoregressive"]


def shape(args):
    """A folder with a configuration and the planner's tokenizer: the shape of both."""
    folder = args.work / "shape"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ROOT / "assets/planner/tokenizer.json"
    vocabulary = len(json.loads(tokenizer.read_text())["model"]["vocab"])
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocabulary, "n_positions": args.length,
        "n_embd": args.width, "n_layer": args.layers, "n_head": args.heads, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 1, "sep_token_id": 2, "mask_token_id": 0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def data(args):
    """Problems to learn from and to be asked, unless they are there."""
    for split, count, seed in (("train", args.train, 1), ("test", args.test, 2)):
        path = args.work / f"{split}.jsonl"
        if not path.exists():
            command = [args.lacuna, "data", "countdown", "--numbers", args.numbers, "--split", split]
            command += ["--count", count, "--seed", seed, "--output", path, "--quiet"]
            run(command, args.dry_run)


def trained(folder, steps):
    """The checkpoint of the last step, if it is there."""
    path = folder / f"checkpoints/step-{steps}"
    return path if path.is_dir() else None


def train(args, kind, seed):
    """The checkpoint of a run, which is begun or goes on."""
    folder = args.work / f"{kind}-seed{seed}"
    done = trained(folder, args.steps)
    if done:
        return done
    command = [args.lacuna, "sft" if kind == "diffusion" else "train-ar", "--output", folder, *args.machine]
    if list(folder.glob("checkpoints/step-*")):
        command += ["--resume"]
    else:
        if not args.dry_run:
            shutil.rmtree(folder, ignore_errors=True)  # without a checkpoint there is nothing to go on from
        command += ["--from-scratch", "--model", args.work / "shape", "--data", args.work / "train.jsonl"]
        command += ["--length", args.length, "--batch", args.batch, "--steps", args.steps, "--lr", args.lr]
        command += ["--weight-decay", "0.01", "--seed", seed, "--save-every", max(args.steps // 20, 1)]
        if kind == "diffusion":
            command += ["--time-weight", "linear", "--focal-alpha", "0.25", "--focal-gamma", args.gamma]
        else:
            command += ["--pad", "none"]
    run([*command, *args.quiet], args.dry_run)
    return folder / f"checkpoints/step-{args.steps}"


def minutes_of(args, kind, seed):
    """What a training takes: all steps at the median time of one, so that pauses do not count."""
    lines = (args.work / f"{kind}-seed{seed}/log.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "tokens_per_second" in line]
    return statistics.median(line["tokens"] / line["tokens_per_second"] for line in steps) * args.steps / 60


def ask(args, kind, seed, model, name, flags):
    """What the test split says of a model: accuracy, share of true equations, NFE, seconds."""
    out = args.work / f"eval-{kind}-seed{seed}-{name}"
    if not (out / "results.jsonl").exists():
        command = [args.lacuna, "eval", "countdown", "--model", model, "--data", args.work / "test.jsonl"]
        command += ["--output", out, "--seed", seed, *flags, *args.machine, *args.quiet]
        if args.report_only:
            raise SystemExit(f"{out}: there is no results.jsonl; without --report-only it is computed")
        run([*command, "--resume"] if out.exists() else command, args.dry_run)
    if args.dry_run:
        return None
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    accuracy = [line for line in lines if line["metric"] == "accuracy"]
    true = {(l["steps"], l["remask"]): l["value"] for l in lines if l["metric"] == "true equations"}
    return [
        {"steps": l["steps"], "remask": l["remask"], "accuracy": l["value"], "true": true[l["steps"], l["remask"]],
         "nfe": l["nfe"], "seconds": l["seconds"]}
        for l in accuracy
    ]  # fmt: skip


def of(args, kind, seed):
    """One model: trained, and asked."""
    model = trained(args.work / f"{kind}-seed{seed}", args.steps)
    if model is None and args.report_only:
        raise SystemExit(f"{kind}, seed {seed}: there is no checkpoint of step {args.steps} in {args.work}")
    model = model or train(args, kind, seed)
    if kind == "autoregressive":
        return ask(args, kind, seed, model, "greedy", ["--ar", "--greedy"])
    found = ask(args, kind, seed, model, "remask", ["--self-correction"])
    sweep = ask(args, kind, seed, model, "sweep", ["--t-sweep", "1,2,4,8,16,32"])
    return found and found + sweep


def percent(values):
    mean, half = interval(values)
    return f"{100 * mean:.1f} %" + ("" if half is None else f" ± {100 * half:.1f}")


def parameters(args):
    """Weights of the shape: embedding, positions, blocks, the last norm."""
    c = args.width
    vocabulary = len(json.loads((ROOT / "assets/planner/tokenizer.json").read_text())["model"]["vocab"])
    return (vocabulary + args.length) * c + args.layers * (12 * c * c + 13 * c) + 2 * c


def words(args, result):
    """The generated part of the document."""
    about = result["about"]
    rows = []
    for name, kind, pick in result["rows"]:
        cells = [result["seeds"][str(seed)][kind][pick] for seed in args.seeds]
        nfe, seconds = (statistics.fmean(c[key] for c in cells) for key in ("nfe", "seconds"))
        each = ", ".join(f"{100 * c['accuracy']:.1f}" for c in cells)
        rows.append(
            f"| {name} | {nfe:.1f} | {percent([c['accuracy'] for c in cells])} | {each} |"
            f" {percent([c['true'] for c in cells])} | {seconds:.1f} s |"
        )
    return "\n".join([
        f"{about['numbers']} numbers; GPT-2 of {args.layers} layers, width {args.width}, {about['parameters'] / 1e6:.2f} M"
        f" parameters; {args.train} training problems, {args.steps} steps of {args.batch}, peak learning rate {args.lr:g};"
        f" {args.test} test problems; seeds {', '.join(map(str, args.seeds))}; {about['lacuna']}, {about['processor']}."
        f" A training takes {about['minutes']['diffusion']:.0f} minutes (diffusion) and"
        f" {about['minutes']['autoregressive']:.0f} (autoregressive) there"
        + (f", {about['jobs']} at a time." if about["jobs"] > 1 else "."),
        "",
        "| model, decoding | NFE | solved | of each seed | true equations | time for all |",
        "|---|---:|---:|---|---:|---:|",
        *rows,
        "",
        f"Solved: mean over {len(args.seeds)} seeds ± half of its 95 % interval (Student's t over seeds)."
        if len(args.seeds) > 1
        else "One seed: no intervals.",
    ])  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = [("numbers", 3, "numbers of a problem"), ("train", 300_000, "training problems"), ("test", 1000, "test problems"),
             ("steps", 8000, "of every training"), ("batch", 128, "problems of a step"), ("layers", 4, "of the shape"),
             ("width", 128, "of the shape"), ("heads", 2, "of the shape"),
             ("length", 38, "tokens of the canvas, problem and solution"),
             ("jobs", 1, "models at a time; small ones train faster as --jobs 2 --threads 1 than one after the other")]  # fmt: skip
    for name, default, what in whole:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default 3e-3)")
    parser.add_argument("--gamma", type=float, default=1.0, help="of the focal token weight (default 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="(default 0 1 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every job (default: all)")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--work", type=Path, default=ROOT / "target/planning", metavar="DIR",
                        help="where data and runs are kept (default target/planning)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/experiments", metavar="DIR", help="a folder with planning.md")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("--report-only", action="store_true", help="run nothing, read what is there")
    args = parser.parse_args()
    for name, *_ in whole:
        if getattr(args, name) < 1:
            parser.error(f"--{name} is at least 1")
    if args.width % args.heads or len(set(args.seeds)) != len(args.seeds):
        parser.error("--heads divides --width, and no seed is there twice")
    args.work = args.work.resolve()
    args.machine = ["--device", args.device, *(["--threads", args.threads] if args.threads else [])]
    args.quiet = ["--quiet"] if args.jobs > 1 else []
    return args


def settings(args):
    keys = ["numbers", "train", "test", "steps", "batch", "layers", "width", "heads", "length", "lr", "gamma"]
    return {key: getattr(args, key) for key in keys}


def write_machine(args):
    """Leaves in the folder what a report says about the machine."""
    version = subprocess.run([args.lacuna, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    about = {"lacuna": version, "processor": processor(), "jobs": args.jobs}
    (args.work / "machine.json").write_text(json.dumps(about, indent=1) + "\n")


def read_machine(args):
    path = args.work / "machine.json"
    if not path.is_file():
        raise SystemExit(f"{args.work}: there are no runs")
    return json.loads(path.read_text())


def main():
    args = arguments()
    hold_to(args.work, settings(args), start=not args.dry_run and not args.report_only)
    if not args.report_only:
        args.lacuna = args.lacuna or ("lacuna" if args.dry_run else find_lacuna(None))
        leave_ctrl_c_to_commands()
        if not args.dry_run:
            shape(args)
            write_machine(args)
        data(args)
    todo = [(seed, kind) for seed in args.seeds for kind in KINDS]
    found = at_a_time(1 if args.dry_run else args.jobs, [partial(of, args, kind, seed) for seed, kind in todo])
    seeds = {str(seed): {} for seed in args.seeds}
    for (seed, kind), answers in zip(todo, found):
        seeds[str(seed)][kind] = answers
    if args.dry_run:
        return
    minutes = {kind: statistics.fmean(minutes_of(args, kind, seed) for seed in args.seeds) for kind in KINDS}
    about = settings(args) | {"parameters": parameters(args), **read_machine(args), "minutes": minutes}
    rows = [
        ["diffusion, T = 20, remasking", "diffusion", 1],
        ["diffusion, T = 20, no remasking", "diffusion", 0],
        *[[f"diffusion, T = {t}, remasking", "diffusion", 2 + i] for i, t in enumerate([1, 2, 4, 8, 16, 32])],
        ["autoregressive, greedy", "autoregressive", 0],
    ]
    result = {"about": about, "seeds": seeds, "rows": rows}
    (args.docs / "planning.json").write_text(json.dumps(result, indent=1) + "\n")
    insert(args.docs / "planning.md", "planning", words(args, result))
    print(words(args, result))


if __name__ == "__main__":
    main()
