"""Running the programs: each in a process of its own whose peak memory is known; Ctrl-C reaches only this one."""

import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

from compare.setup import ROOT

RUNNING = set()


def start(command, **options):
    """A process in a session of its own, so that Ctrl-C ends it only through `stop_all`."""
    try:
        process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    except OSError as error:
        raise SystemExit(f"{command[0]} does not start: {error}") from None
    RUNNING.add(process)
    return process


def stop_all():
    """Ends what still runs."""
    for process in list(RUNNING):
        process.kill()
        process.wait()
    RUNNING.clear()


class Finished:
    """What a program printed, and the most that it had resident, in bytes."""

    def __init__(self, output, errors, peak):
        self.output, self.errors, self.peak = output, errors, peak

    def objects(self):
        """The JSON objects among the lines of its output."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


def run(command):
    """Runs a program to its end; a failure ends this one with the program's own words.

    This process stays small: what a child takes over of its peak before exec does not count.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = start(command, stdout=subprocess.PIPE, stderr=errors)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        RUNNING.discard(process)
        errors.seek(0)
        words = errors.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nfailed with {process.returncode}: {(words.strip() or output.strip())[-2000:]}")
    return Finished(output, words, usage.ru_maxrss * 1024)


# ---------------------------------------------------------------- PyTorch


class TorchProcess:
    """A PyTorch process for one kind of work: see torch_side.serve."""

    def __init__(self, args, kind, attention="sdpa"):
        command = [args.python, str(ROOT / "tools/compare_torch.py"), "--serve", kind, "--model", args.model]
        command += ["--attention", attention, "--threads", str(args.threads), "--mask-id", str(args.mask_id)]
        self.process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.about = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the PyTorch process ended with status {self.process.wait()}; its own words are above")
        return json.loads(line)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        RUNNING.discard(self.process)


# ---------------------------------------------------------------- lacuna


def lacuna(args, *command):
    """Runs the binary with --json; its JSON objects, its peak memory in bytes, and the device as it says with --verbose."""
    command = [args.lacuna, *map(str, command), "--device", "cpu", "--threads", str(args.threads), "--json"]
    done = run(command)
    objects = done.objects()
    if not objects:
        raise SystemExit(f"{' '.join(command)}\nprinted no JSON: {done.output[:500]!r}")
    told = [line.removeprefix("computing on ") for line in done.errors.splitlines() if line.startswith("computing on ")]
    return objects, done.peak, told[0] if told else objects[-1].get("device")


def write_ids(path, ids):
    """A safetensors file with one tensor: `x`, int32 [B, L]."""
    data = b"".join(struct.pack(f"<{len(row)}i", *row) for row in ids)
    info = {"dtype": "I32", "shape": [len(ids), len(ids[0])], "data_offsets": [0, len(data)]}
    header = json.dumps({"x": info}).encode()
    header += b" " * (-len(header) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(header)) + header + data)


def forward(args, ids):
    """Seconds of a pass over ids [B, L] after a first one; loading and the file of logits are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        write_ids(source, ids)
        flags = ["--model", args.model, "--input", source, "--output", target, "--repeat", args.inner, "--verbose"]
        objects, peak, device = lacuna(args, "replay", "forward", *flags)
    return {"seconds": objects[-1]["seconds"], "peak_memory_bytes": peak, "device": device}


def generate(args, steps):
    """Seconds of a generation that fills a canvas but for its first token; loading is not counted."""
    flags = ["--model", args.model, "--mask-id", args.mask_id, "--length", args.canvas - 1, "--steps", steps]
    flags += ["--top-p", args.top_p, "--ignore-eos", "--verbose"]
    objects, peak, device = lacuna(args, "generate", *flags)
    last = objects[-1]
    canvas = len(last.get("canvas_ids", ()))
    if canvas != args.canvas or last["tokens"] != args.canvas - 1:
        raise SystemExit(f"lacuna filled {last['tokens']} tokens of a canvas of {canvas}: expected {args.canvas - 1} of {args.canvas}")
    return {"seconds": last["seconds"], "nfe": last["nfe"], "tokens": last["tokens"], "peak_memory_bytes": peak, "device": device}


def train(args, share):
    """Seconds of a training step."""
    flags = ["--model", args.model, "--batch", args.train_batch, "--length", args.train_length, "--masked", share]
    flags += ["--repeat", args.train_steps, "--warmup", args.train_warmup]
    objects, peak, device = lacuna(args, "bench", "train", *flags)
    last = [line for line in objects if line.get("bench") == "train"][-1]
    seconds = last.get("median_s", last["seconds"])
    return {
        "seconds": seconds, "peak_memory_bytes": peak, "device": device, "flops": last.get("flops"), "masked": last.get("masked"),
        "parameters": last.get("parameters"),
    }  # fmt: skip


def kernels(args):
    """The lines of `bench kernels` on drawing tokens, and the peak memory; None and why, where the binary has none."""
    command = [args.lacuna, "bench", "kernels", "--filter", "unmask", "--device", "cpu", "--threads", str(args.threads), "--json"]
    command += ["--quick"] if args.quick else []
    try:
        done = run(command)
    except SystemExit as error:
        return None, str(error).splitlines()[-1]
    return done, ""
