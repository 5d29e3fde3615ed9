#!/usr/bin/env python3
"""Does a model folder mean the same to transformers as to lacuna?

Random token ids go through the folder in both, in f32: transformers' AutoModelForCausalLM with eager attention and an
explicit additive mask, and lacuna replay forward. Checked, for bidirectional and for causal attention:

  logits      the greatest difference is below 1e-4 of the greatest logit
  argmax      the most probable token of every row is the same, unless the first two are nearer than that

and on request

  --gradients             lacuna replay loss --grads against autograd: the loss, and the gradient by every parameter,
                          each within 1e-4 of the greatest number in that tensor
  --adapter A --merged M  the folder with the PEFT adapter A over it, as peft loads it, against the folder M that
                          lacuna merge wrote: in transformers and in lacuna

transformers is looked for in the interpreter that runs this, else in target/check-venv, which is made on first use
(a few hundred megabytes from PyPI).

examples:
  tools/check_transformers.py run/checkpoints/step-1000
  tools/check_transformers.py run/checkpoints/step-1000 --gradients --lacuna target/release/lacuna
  tools/check_transformers.py base --adapter run/checkpoints/step-1000 --merged merged

Exit codes: 0 all agree, 1 something differs or a program failed, 2 wrong usage.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from compare.setup import ROOT, find_lacuna

VENV = ROOT / "target/check-venv"
PACKAGES = ["torch", "transformers>=4.56", "numpy", "safetensors"]
TOLERANCE = 1e-4


# ---------------------------------------------------------------- finding what is needed


def use_python(packages):
    """Goes on in an interpreter that has the packages: this one, or that of the environment under target/."""
    missing = [name for name in packages if importlib.util.find_spec(name.split(">")[0]) is None]
    if not missing:
        return
    python = VENV / "bin/python"
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SystemExit(f"{VENV} has no {', '.join(missing)} though it was asked for; remove the folder and try again")
    if not python.exists():
        print(f"making {VENV} with {', '.join(packages)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


# ---------------------------------------------------------------- transformers


def load(folder):
    """The model of a folder in f32, every parameter of it from the file."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # The causal mask of old GPT-2 checkpoints is no parameter.
        names = [str(name) for name in info[what] if not str(name).endswith((".attn.bias", ".attn.masked_bias"))]
        if names:
            raise SystemExit(
                f"{folder}: transformers loads it with {what.replace('_', ' ')}: {', '.join(sorted(names)[:3])};"
                " names other than Hugging Face's, such as denoise_model.*, it does not know"
            )
    return model.eval()


def additive(kind, batch, length):
    """What is added to the scores [B, 1, L, L]: 0 where a query sees a key, the least f32 where not."""
    import torch

    seen = torch.ones(length, length, dtype=torch.bool)
    if kind == "causal":
        seen = seen.tril()
    mask = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    return mask.expand(batch, 1, length, length)


def logits_of(model, x, kind):
    """Logits [B, L, V] of ids [B, L]."""
    return model(input_ids=x, attention_mask=additive(kind, *x.shape), use_cache=False).logits


def check_masks(model, vocab):
    """Fails unless the first position sees the last one just when it should."""
    import torch

    x = torch.arange(8)[None] % vocab
    y = x.clone()
    y[0, -1] = 11 % vocab
    for kind in ("bidirectional", "causal"):
        same = torch.equal(*(logits_of(model, ids, kind)[0, 0] for ids in (x, y)))
        if same != (kind == "causal"):
            raise SystemExit(f"with this version of transformers a {kind} mask does not make attention {kind}")


# ---------------------------------------------------------------- lacuna


def lacuna(args, what, folder, tensors, *flags):
    """Runs lacuna replay WHAT on tensors and gives those it writes."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as work:
        source, target = f"{work}/in.safetensors", f"{work}/out.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source)
        command = [args.lacuna, "replay", what, "--model", str(folder), "--input", source, "--output", target, *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nfailed with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return load_file(target)


def lacuna_logits(args, folder, x, kind):
    import torch

    return lacuna(args, "forward", folder, {"x": x.to(torch.int32)}, "--attention", kind)["logits"]


# ---------------------------------------------------------------- comparing


class Report:
    """Prints a line for each check and remembers whether one failed."""

    def __init__(self):
        self.wrong = 0

    def line(self, good, text):
        self.wrong += not good
        print(f"{'ok   ' if good else 'WRONG'} {text}", flush=True)

    def logits(self, name, got, want):
        """Compares logits [B, L, V]."""
        if got.shape != want.shape:
            self.line(False, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}")
            return
        scale = want.abs().max().item()
        error = (got - want).abs().max().item() / scale
        self.line(error < TOLERANCE, f"{name}: logits differ by {error:.2e} of the greatest, {scale:.3g}")
        best = want.topk(2, dim=-1).values
        clear = best[..., 0] - best[..., 1] > TOLERANCE * scale
        differ = got.argmax(-1) != want.argmax(-1)
        wrong, near = int((differ & clear).sum()), int((differ & ~clear).sum())
        note = f" ({near} more where the first two are as good as equal)" if near else ""
        self.line(wrong == 0, f"{name}: argmax differs in {wrong} of {differ.numel()} rows{note}")


def check_forward(args, report, model, x):
    import torch

    with torch.no_grad():
        for kind in ("bidirectional", "causal"):
            report.logits(kind, lacuna_logits(args, args.model, x, kind), logits_of(model, x, kind))


def check_adapter(args, report, x):
    import peft
    import torch

    adapted = peft.PeftModel.from_pretrained(load(args.model), args.adapter).eval()
    plain, merged = load(args.model), load(args.merged)
    with torch.no_grad():
        for kind in ("bidirectional", "causal"):
            want = logits_of(adapted, x, kind)
            if torch.equal(want, logits_of(plain, x, kind)):
                report.line(False, f"adapter, {kind}: it changes nothing, so that nothing is compared")
                continue
            report.logits(f"adapter, {kind}, merged in transformers", logits_of(merged, x, kind), want)
            report.logits(f"adapter, {kind}, merged in lacuna", lacuna_logits(args, args.merged, x, kind), want)


def plain_name(name):
    """A parameter's name without the prefix that some checkpoints leave out."""
    for prefix in ("transformer.", "model."):
        name = name.removeprefix(prefix)
    return name


def check_gradients(args, report, model, x, config):
    """The masked loss weighted 1/t over the number of masked tokens, and its gradients."""
    import torch

    mask_id = args.mask_id if args.mask_id is not None else config.get("mask_token_id")
    if mask_id is None:
        raise SystemExit(f"{args.model}: config.json names no mask_token_id: give --mask-id N")
    shift = config.get("shift", True)
    generator = torch.Generator().manual_seed(args.seed + 1)
    x0 = torch.where(x == mask_id, (mask_id + 1) % model.config.vocab_size, x)  # a clean token is never the mask
    t = 0.2 + 0.6 * torch.rand(x.shape[0], generator=generator)
    masked = torch.rand(x.shape, generator=generator) < t[:, None]
    masked[:, -1] = True
    xt = x0.masked_fill(masked, mask_id)

    logits, target, counted = logits_of(model, xt, "bidirectional"), x0, masked
    if shift:
        logits, target, counted = logits[:, :-1], x0[:, 1:], masked[:, 1:]
    nll = torch.logsumexp(logits, -1) - logits.gather(-1, target[..., None])[..., 0]
    loss = (nll / t[:, None])[counted].sum() / counted.sum()
    model.zero_grad(set_to_none=True)
    loss.backward()

    inputs = {"x0": x0.to(torch.int32), "x_t": xt.to(torch.int32), "t": t}
    flags = ["--grads", "--mask-id", str(mask_id)] + ([] if shift else ["--no-shift"])
    out = lacuna(args, "loss", args.model, inputs, *flags)
    error = abs(out["weighted"].item() - loss.item()) / abs(loss.item())
    report.line(error < TOLERANCE, f"loss: {out['weighted'].item():.6f}, expected {loss.item():.6f}")
    got = {plain_name(name.removeprefix("grad.")): g for name, g in out.items() if name.startswith("grad.")}
    want = {plain_name(name): p for name, p in model.named_parameters()}
    for name in sorted(got.keys() - want.keys()):
        report.line(False, f"gradient by {name}: no parameter of transformers")
    worst = 0.0, "none"
    right = 0
    for name, parameter in want.items():
        if name not in got:
            report.line(False, f"gradient by {name}: not there")
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if got[name].shape != gradient.shape:
            report.line(False, f"gradient by {name}: shape {list(got[name].shape)}, expected {list(gradient.shape)}")
            continue
        scale = gradient.abs().max().item()
        difference = (got[name] - gradient).abs().max().item()
        # A tensor without any gradient, such as unused positions, has none on the other side either.
        error = difference / scale if scale > 0 else float(difference > 0)
        worst = max(worst, (error, name))
        if error < TOLERANCE:
            right += 1
        else:
            report.line(False, f"gradient by {name}: differs by {error:.2e} of the greatest, {scale:.3g}")
    report.line(right == len(want), f"gradients: {right} of {len(want)} agree; the worst is {worst[1]} with {worst[0]:.2e}")


# ---------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="a model as a Hugging Face folder")
    parser.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    parser.add_argument("--gradients", action="store_true", help="compare the loss and its gradients too")
    parser.add_argument("--mask-id", type=int, metavar="N", help="--gradients: mask token (default: the model's)")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter over MODEL_DIR, to compare with --merged")
    parser.add_argument("--merged", metavar="DIR", help="what lacuna merge made of the two")
    parser.add_argument("--batch", type=int, default=2, help="sequences (default 2)")
    parser.add_argument("--length", type=int, default=33, help="tokens of a sequence (default 33)")
    parser.add_argument("--seed", type=int, default=0, help="of the token ids (default 0)")
    args = parser.parse_args()
    if args.batch < 1 or args.length < 2:
        parser.error("--batch is at least 1 and --length at least 2")
    if bool(args.adapter) != bool(args.merged):
        parser.error("--adapter and --merged go together")
    for folder, file in ((args.model, "config.json"), (args.adapter, "adapter_config.json"), (args.merged, "config.json")):
        if folder and not Path(folder, file).is_file():
            parser.error(f"{folder}: no {file} there")
    return args


def main():
    args = arguments()
    use_python(PACKAGES + (["peft"] if args.adapter else []))
    import torch

    args.lacuna = find_lacuna(args.lacuna)
    config = json.loads(Path(args.model, "config.json").read_text())
    model = load(args.model)
    vocab = model.config.vocab_size
    check_masks(model, vocab)
    positions = getattr(model.config, "max_position_embeddings", args.length)
    if args.length > positions:
        raise SystemExit(f"--length {args.length}: {args.model} has {positions} positions")
    x = torch.randint(0, vocab, (args.batch, args.length), generator=torch.Generator().manual_seed(args.seed))
    report = Report()
    check_forward(args, report, model, x)
    if args.gradients:
        check_gradients(args, report, model, x, config)
    if args.adapter:
        check_adapter(args, report, x)
    raise SystemExit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
