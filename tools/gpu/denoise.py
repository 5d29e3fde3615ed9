"""Part 6 of tools/gpu_check.sh: whole generations. The paper's loop in PyTorch (T forward passes over everything, logits of
all rows, temperature, top-p by sorting, a categorical draw, each masked position revealed with probability 1/s), and
decoding token by token with a cache of keys and values, each beside lacuna's at the same size, the most telling sizes first.

A step of the paper's loop costs the same whatever is masked, so that where there is no time for all T steps some are measured
and scaled; the row says so. Attention, draws and reveals are PyTorch's own, eager, in bf16.
"""

from common import Clock, Lines, Machine, arguments, brief, run_lacuna, say
from kernels import top_p
from models import SHAPES, build

TOP_P = 0.9
TEMPERATURE = 1.0
# Rows whose logits are sorted at a time: the whole of a large batch does not fit in the card.
ROWS = 4096


def plan(tiny):
    """(kind, shape, length, steps, batch), the most telling first."""
    if tiny:
        loops = [("tiny-gpt2", 16, 4, 1), ("tiny-llama", 16, 4, 2), ("tiny-gpt2", 16, 8, 1)]
        return [("denoise", *loop) for loop in loops] + [("ar", "tiny-gpt2", 16, 0, 1), ("ar", "tiny-llama", 16, 0, 2)]
    small, medium, large = ("diffugpt-s", 512), ("diffugpt-m", 1024), ("diffullama-7b", 1024)
    first = [small, medium, large]
    rest = [("diffullama-7b", 2048), ("diffugpt-s", 1024), ("diffugpt-m", 512), ("diffullama-7b", 512)]
    todo = [("denoise", *s, 64, 1) for s in first]
    todo += [("ar", *s, 0, 1) for s in first]
    todo += [("denoise", *s, 256, 1) for s in first]
    todo += [("denoise", *s, 64, 32) for s in first]
    for s in rest:
        todo += [("denoise", *s, 64, 1), ("denoise", *s, 256, 1)]
    todo += [("ar", *s, 0, 1) for s in rest]
    todo += [("ar", *s, 0, 32) for s in first]
    todo += [("denoise", *s, 256, 32) for s in first]
    for s in rest:
        todo += [("denoise", *s, 64, 32), ("denoise", *s, 256, 32), ("ar", *s, 0, 32)]
    return todo


class PaperLoop:
    def __init__(self, machine, net, shape, length, batch):
        self.torch, self.net = machine.torch, net
        mask = shape.vocab - 1
        self.ids = self.torch.full((batch, length), mask, device=machine.device)
        self.ids[:, 0] = 0
        self.masked = self.ids == mask

    def draw(self, logits):
        torch = self.torch
        drawn = []
        for rows in logits.view(-1, logits.shape[-1]).split(ROWS):
            kept = top_p(torch, rows / TEMPERATURE, TOP_P)
            drawn.append(torch.multinomial(torch.softmax(kept.float(), -1), 1))
        return torch.cat(drawn).view(logits.shape[:-1])

    def step(self, left):
        """One step of the loop, `left` to go with this one."""
        torch = self.torch
        drawn = self.draw(self.net.logits(self.ids))
        drawn = torch.cat((self.ids[:, :1], drawn[:, :-1]), 1)  # row i predicts position i + 1
        reveal = self.masked & (torch.rand(self.ids.shape, device=self.ids.device) < 1.0 / left)
        self.ids = torch.where(reveal, drawn, self.ids)
        self.masked = self.masked & ~reveal


def torch_loop(machine, net, shape, length, steps, batch, seconds):
    """Seconds of a generation, of how many steps measured, and the measured seconds of each step or run of steps."""
    PaperLoop(machine, net, shape, length, batch).step(steps)  # a warm-up
    loop = PaperLoop(machine, net, shape, length, batch)
    one = machine.seconds(lambda: loop.step(steps))
    measured = max(1, min(steps - 1, int(seconds / max(one, 1e-6))))

    def run():
        for k in range(measured):
            loop.step(steps - 1 - k)

    spent = one + machine.seconds(run)
    measured += 1
    if measured == steps and bool(loop.masked.any()):
        raise RuntimeError("the loop left masked positions behind")
    return spent * steps / measured, measured


def torch_decode(machine, net, shape, length, batch, seconds):
    """Seconds for all tokens but the first, and of how many steps measured, from the middle on."""
    torch = machine.torch
    half = length // 2
    start = torch.randint(shape.vocab, (batch, half), device=machine.device)
    state = net.decode(start, None)[1]
    last = start[:, -1:]

    def step():
        nonlocal last, state
        logits, state = net.decode(last, state)
        kept = top_p(torch, logits[:, -1] / TEMPERATURE, TOP_P)
        last = torch.multinomial(torch.softmax(kept.float(), -1), 1)

    step()
    one = machine.seconds(step)
    measured = max(1, min(length - half - 2, int(seconds / max(one, 1e-6))))

    def run():
        for _ in range(measured):
            step()

    return machine.seconds(run) * (length - 1) / measured, measured


OWN = "lacuna, own products"


def lacuna(binary, kind, shape, length, steps, batch, repeat, seconds, gemm="auto"):
    flags = ["bench", "generate", "--device", "cuda", "--dtype", "bf16", "--shape", shape, "--length", length]
    flags += ["--steps", steps or length, "--batch", batch, "--repeat", repeat, "--gemm", gemm, "--json"]
    flags += ["--ar"] if kind == "ar" else []
    found, error = run_lacuna(binary, flags, seconds)
    found = [line for line in found if line.get("bench") == "generate"]
    return (found[-1] if found else {}), error


class Bench:
    """The networks, and what has been measured of them."""

    def __init__(self, args):
        self.machine = Machine(args.tiny)
        self.share = 0.05 if args.tiny else args.share
        self.own, self.nets, self.per_step = args.own, {}, {}

    def row(self, kind, name, length, steps, batch):
        """PyTorch's line for one size."""
        machine, shape = self.machine, SHAPES[name]
        row = {"who": "PyTorch", "torch": machine.torch.__version__, "device": machine.name}
        try:
            if name not in self.nets:
                self.nets[name] = build(machine.torch, shape, machine.device, machine.torch.bfloat16, self.own)
            net = self.nets[name]
            if kind == "ar":
                seconds, measured = torch_decode(machine, net, shape, length, batch, self.share)
                whole = length - 1
            else:
                size = (name, length, batch)
                if size not in self.per_step:
                    seconds, measured = torch_loop(machine, net, shape, length, steps, batch, self.share)
                    self.per_step[size] = (seconds / steps, measured)
                # A step costs the same whatever T is.
                seconds, measured = self.per_step[size][0] * steps, min(steps, self.per_step[size][1])
                whole, work = steps, steps * shape.flops(batch, length)
                row.update(flops=work, tflop_per_s=work / seconds / 1e12)
            tokens = batch * (length - 1)
            row.update(model=net.about, seconds=seconds, measured_steps=measured, tokens=tokens)
            row["tokens_per_s"] = tokens / seconds
            if measured < whole:
                row["scaled"] = f"scaled from {measured} step{'s' * (measured > 1)}"
        except RuntimeError as error:  # memory, above all
            row["error"] = brief(error)
        return row

    def after(self, row):
        """Makes room; the networks go too where there was too little."""
        if "error" in row:
            self.nets.clear()
        self.machine.forget()


def main():
    args = arguments(
        __doc__,
        lacuna={"help": "the binary; without, only PyTorch is measured"},
        share={"type": float, "default": 3.0, "help": "seconds of PyTorch's steps a size (default 3)"},
        own={"action": "store_true", "help": "torch.nn modules instead of transformers'"},
        without={"action": "store_true", "help": "without PyTorch: only lacuna is measured"},
    )
    lines, clock = Lines(args.output, "denoise"), Clock(args.seconds)
    bench, todo = None if args.without else Bench(args), plan(args.tiny)
    compared = set()
    for done, (kind, name, length, steps, batch) in enumerate(todo):
        if clock.left() < 5 and done:
            lines.write(stopped=f"{len(todo) - done} of {len(todo)} sizes not measured: no time left")
            say(f"denoise: no time left after {done} of {len(todo)} sizes")
            break
        what = {"bench": kind, "shape": name, "length": length, "steps": steps, "batch": batch, "dtype": "bf16"}
        row = {}
        if bench:
            row = bench.row(kind, name, length, steps, batch)
            lines.write(**row, **what)
            bench.after(row)
            say(f"denoise: {kind} {name} L {length} T {steps} B {batch}: {row.get('seconds', row.get('error'))}")
        if not args.lacuna:
            continue
        # Three times where that takes a few seconds by PyTorch's time, else once.
        repeat = 3 if row.get("seconds", 99.0) < 10 else 1
        limit = min(90.0, max(10.0, clock.left()))
        found, error = lacuna(args.lacuna, kind, name, length, steps, batch, repeat, limit)
        lines.write(**{**found, "who": "lacuna", **what}, **({"error": error} if error else {}))
        # The first size of a network also by lacuna's own kernels, where a library multiplied.
        if kind == "denoise" and name not in compared and found.get("gemm", "own") != "own" and clock.left() > 10:
            compared.add(name)
            found, error = lacuna(args.lacuna, kind, name, length, steps, batch, repeat, min(90.0, clock.left()), "own")
            lines.write(**{**found, "who": OWN, **what}, **({"error": error} if error else {}))


if __name__ == "__main__":
    main()
