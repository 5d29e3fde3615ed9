#!/usr/bin/env python3
"""A training step of lacuna beside the same step in PyTorch: time and peak memory, in one run.

The step is the paper's (arXiv 2410.17891, section 3): a batch of masked sequences, bidirectional attention,
cross-entropy of the masked tokens through the shift, weighted 1/t, gradients clipped to norm 1, AdamW; weights,
gradients and both moments in f32. A share of the tokens is masked, and t is that share.

PyTorch runs transformers' LlamaForCausalLM with an additive mask of zeros, takes the logits of all positions as the
reference trainers do, and steps with torch.optim.AdamW as it comes (the table says which of its variants that is on
this machine) after clip_grad_norm_ and with zero_grad(set_to_none=True). Nothing is compiled. It is measured with eager
attention, which the paper's trainer patches its mask into, and with scaled-dot-product attention, which is faster.

Each measurement is a process of its own, and the two programs take turns. Seconds are of a whole step (zero_grad,
forward, loss, backward, clip, update): medians over the steps of a process after warm-up, then over the turns. Peak
memory is the most that the process ever had resident, loading included, as the kernel counts it for both.

PyTorch is looked for in the interpreter that runs this, else in tools/.venv, which is made on first use
(a few hundred megabytes from PyPI).

examples:
  tools/compare_torch_train.py --model target/smollm2
  tools/compare_torch_train.py                          made-up weights in the shape of SmolLM2-135M
  tools/compare_torch_train.py --masked 0.5 --attention sdpa --rounds 5 --json train.json
  tools/compare_torch_train.py --torch-only --threads 2
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare_torch import ROOT, find_lacuna, find_python, processor

# SmolLM2-135M, as tools/fetch_smollm2.py writes it.
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536,
    "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
HYPERPARAMETERS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CLIP = 1.0


# ---------------------------------------------------------------- the PyTorch side, a process of its own


def write_synthetic(folder, config=SHAPE, seed=0):
    """A model folder with random bf16 weights of the given LLaMA shape: config.json and model.safetensors."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}."
        shapes |= {name + f"{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        shapes |= {name + f"self_attn.{p}_proj.weight": (n, width) for p, n in zip("qkv", (queries, keys, keys))}
        shapes |= {name + "self_attn.o_proj.weight": (width, queries)}
        shapes |= {name + f"mlp.{p}_proj.weight": (inner, width) for p in ("gate", "up")}
        shapes |= {name + "mlp.down_proj.weight": (width, inner)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (0.02 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.rename(folder / "model.safetensors")
    # The configuration comes last: a folder that has one is complete.
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def variant_of(optimizer):
    """Which of its three implementations a torch.optim.AdamW takes for its parameters."""
    from torch.optim.optimizer import _default_to_fused_or_foreach as choose

    group = optimizer.param_groups[0]
    fused, foreach = group.get("fused"), group.get("foreach")
    if fused is None and foreach is None:
        fused, foreach = choose(group["params"], differentiable=False, use_fused=False)
    return "fused" if fused else "foreach" if foreach else "one tensor at a time"


def train_torch(args):
    """Child process: times steps and prints one JSON object."""
    import torch
    import torch.nn.functional as F
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attention[0]
    )
    model.train()
    batch, length, share = args.batch, args.length, args.masked[0]
    vocab = model.config.vocab_size
    mask_id = vocab - 1
    additive = torch.zeros(batch, 1, length, length)  # every query sees every key
    optimizer = torch.optim.AdamW(model.parameters(), **HYPERPARAMETERS)
    check_bidirectional(torch, model, vocab)

    hidden = round(share * length)
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, length - hidden :] = True  # the last ones: each is predicted by a row
    weight = torch.full((batch, 1), 1.0 / share)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        x0 = torch.randint(0, mask_id, (batch, length))
        xt = x0.masked_fill(mask, mask_id)
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=xt, attention_mask=additive, use_cache=False).logits
        logits, target, counted = logits[:, :-1], x0[:, 1:], mask[:, 1:]
        nll = F.cross_entropy(logits.reshape(-1, vocab), target.reshape(-1), reduction="none")
        nll = nll.view(batch, -1).masked_fill(~counted, 0.0)
        loss = (weight * nll).sum() / counted.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(nll.detach().sum().item() / int(counted.sum()))
        if step >= args.warmup:
            seconds.append(time.perf_counter() - start)
    state = optimizer.state[model.model.embed_tokens.weight]
    moments = {str(state[name].dtype) for name in ("exp_avg", "exp_avg_sq")}
    if moments != {"torch.float32"} or model.dtype != torch.float32:
        raise SystemExit(f"weights are {model.dtype}, moments {moments}: expected torch.float32")
    print(
        json.dumps({
            "torch": torch.__version__, "transformers": transformers.__version__,
            "optimizer": f"torch.optim.AdamW, {variant_of(optimizer)}", "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in model.parameters()), "all_seconds": seconds,
            "seconds": statistics.median(seconds), "loss": losses[-1], "loaded_kib": before,
        })
    )  # fmt: skip


def check_bidirectional(torch, model, vocab):
    """Fails unless the first position sees the last one."""
    x = torch.arange(8)[None] % vocab
    y = x.clone()
    y[0, -1] = 11 % vocab
    mask = torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        a, b = (model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, 0] for ids in (x, y))
    if torch.equal(a, b):
        raise SystemExit("PyTorch's attention is not bidirectional with this version of transformers")


# ---------------------------------------------------------------- measuring


def run_measured(command):
    """Runs a program to its end; gives the last JSON object it printed and its peak resident MiB.

    This process is small, so that what a child inherits of its peak before exec does not count.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            words = errors.read().strip()[-2000:]
            raise SystemExit(f"{' '.join(command)}\nfailed with {process.returncode}: {words}")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)}\nprinted no JSON: {output[:500]!r}")
    return json.loads(lines[-1]), usage.ru_maxrss / 1024


def torch_turn(python, args, attention, share):
    command = [python, __file__, "--train-torch", "--model", args.model, "--attention", attention]
    command += ["--masked", share, "--batch", args.batch, "--length", args.length, "--steps", args.steps]
    command += ["--warmup", args.warmup, "--threads", args.threads]
    return run_measured([str(word) for word in command])


def lacuna_turn(args, share):
    command = [args.lacuna, "bench", "train", "--model", args.model, "--batch", args.batch, "--length", args.length]
    command += ["--repeat", args.steps, "--warmup", args.warmup, "--masked", share, "--threads", args.threads, "--json"]
    return run_measured([str(word) for word in command])


def compare(python, args, share, about):
    """Rounds of each program in turn; one row for each kind of attention in PyTorch."""
    turns = {name: [] for name in [*args.attention, *(["lacuna"] if args.lacuna else [])]}
    for turn in range(args.rounds):
        for name in turns:
            result, peak = lacuna_turn(args, share) if name == "lacuna" else torch_turn(python, args, name, share)
            turns[name].append({**result, "peak_mib": peak})
            if name != "lacuna":
                about |= {key: result[key] for key in ("torch", "transformers", "optimizer", "parameters")}
            who = name if name == "lacuna" else f"PyTorch, {name}"
            print(
                f"masked {share:g}, round {turn + 1} of {args.rounds}: {who}: {result['seconds']:.3f} s a step,"
                f" at most {peak:.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
    rows = []
    for attention in args.attention:
        row = {"masked": share, "attention": attention, "tokens": args.batch * args.length}
        for who, name in (("torch", attention), ("lacuna", "lacuna")):
            if name in turns:
                of = turns[name]
                row[f"{who}_seconds"] = statistics.median(t["seconds"] for t in of)
                row[f"{who}_least_seconds"] = min(t["seconds"] for t in of)
                row[f"{who}_peak_mib"] = max(t["peak_mib"] for t in of)
                row[f"{who}_turns"] = of
        if args.lacuna:
            row["time_ratio"] = row["torch_seconds"] / row["lacuna_seconds"]
            row["memory_ratio"] = row["torch_peak_mib"] / row["lacuna_peak_mib"]
        rows.append(row)
    return rows


def markdown(about, rows):
    lines = [
        f"{about['model']}, {about['parameters'] / 1e6:.1f} M parameters, a step of {about['batch']} x {about['length']}"
        f" tokens; {about['processor']}, {about['threads']} threads; PyTorch {about['torch']}, transformers"
        f" {about['transformers']}, {about['optimizer']}; medians of {about['rounds']} x {about['steps']} steps.",
        "",
        "| masked | attention in PyTorch | PyTorch | lacuna | ratio | tokens/s PyTorch | tokens/s lacuna"
        " | peak MiB PyTorch | peak MiB lacuna | ratio |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        own = r.get("lacuna_seconds")
        cells = [
            f"{100 * r['masked']:g} %",
            r["attention"],
            f"{r['torch_seconds']:.3f} s",
            f"{own:.3f} s" if own else "–",
            f"{r['time_ratio']:.2f}x" if own else "–",
            f"{r['tokens'] / r['torch_seconds']:.1f}",
            f"{r['tokens'] / own:.1f}" if own else "–",
            f"{r['torch_peak_mib']:.0f}",
            f"{r['lacuna_peak_mib']:.0f}" if own else "–",
            f"{r['memory_ratio']:.2f}x" if own else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def find_model(python, asked):
    """A model folder: the asked one, that of tools/fetch_smollm2.py, or made-up weights of its shape."""
    if asked:
        if not Path(asked, "config.json").is_file():
            raise SystemExit(f"{asked}: no config.json there; tools/fetch_smollm2.py makes a model folder")
        return asked
    folder = ROOT / "target/smollm2"
    if (folder / "config.json").is_file():
        return str(folder)
    made_up = ROOT / "target/smollm2-shape"
    if not (made_up / "config.json").is_file():
        print(f"no {folder}: writing made-up weights of its shape to {made_up}", file=sys.stderr, flush=True)
        subprocess.run([python, __file__, "--write-synthetic", str(made_up)], check=True)
    return str(made_up)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="DIR",
                        help="a LLaMA model as a Hugging Face folder (default: target/smollm2, else made-up weights"
                        " of its shape in target/smollm2-shape)")
    parser.add_argument("--masked", type=float, nargs="+", default=[0.15, 0.5, 1.0], metavar="SHARE",
                        help="shares of the tokens that are masked (default 0.15 0.5 1)")
    parser.add_argument("--attention", nargs="+", choices=["eager", "sdpa"], default=["eager", "sdpa"],
                        help="PyTorch's attention (default: both)")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step (default 4)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence (default 128)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of both (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program (default 3)")
    parser.add_argument("--steps", type=int, default=5, help="steps that a turn times (default 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (default 2)")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--torch-only", action="store_true", help="leave lacuna out")
    parser.add_argument("--python", metavar="FILE", help="an interpreter that has torch and transformers")
    parser.add_argument("--json", metavar="FILE", help="write every measurement here")
    parser.add_argument("--write-synthetic", metavar="DIR", help="only write a folder of made-up weights there")
    parser.add_argument("--train-torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.batch, args.threads, args.rounds, args.steps) < 1 or args.warmup < 0:
        parser.error("batch, threads, rounds and steps are at least 1, and --warmup at least 0")
    if args.length < 2:
        parser.error("--length is at least 2")
    for share in args.masked:
        if not 0 < share <= 1 or round(share * args.length) < 1:
            parser.error(f"--masked {share}: expected a share up to 1 that is one token of {args.length} or more")
    return args


def main():
    args = arguments()
    if args.train_torch:
        train_torch(args)
        return
    python = find_python(args.python)
    if args.write_synthetic:
        if python == sys.executable:
            write_synthetic(args.write_synthetic)
        else:
            subprocess.run([python, __file__, "--write-synthetic", args.write_synthetic], check=True)
        return
    args.model = find_model(python, args.model)
    args.lacuna = None if args.torch_only else find_lacuna(args.lacuna)
    about = {"model": Path(args.model).name, "batch": args.batch, "length": args.length, "threads": args.threads,
             "rounds": args.rounds, "steps": args.steps, "warmup": args.warmup, "processor": processor(),
             "hyperparameters": HYPERPARAMETERS, "clip": CLIP}  # fmt: skip
    rows = []
    for share in args.masked:
        rows += compare(python, args, share, about)
    print(markdown(about, rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
