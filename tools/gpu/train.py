"""Part 8 of tools/gpu_check.sh: whole training steps (forward, the paper's masked loss, backward, clipping, AdamW), PyTorch's
beside those of `lacuna bench train` at the same sizes, the most telling first.

PyTorch: torch.compile, bf16 autocast over f32 weights, fused AdamW, logits of all rows, as the reference trainers have them;
for the 7B shape frozen bf16 weights and adapters. Half of the tokens are masked. Times are medians of at least ten steps
after three. lacuna's command is in its line.
"""

import gc
import statistics

from common import Clock, Lines, Machine, arguments, brief, run_lacuna, say
from models import SHAPES
from train_models import (
    BETAS, CLIP, DECAY, EPS, MASKED_SHARE, RATE, check_bidirectional, masked_loss, network, peak, training_flops,
)  # fmt: skip

WARM_UP, LEAST, MOST, ENOUGH_S = 3, 10, 30, 4.0
RANK = 16
# More ways of the engine, at the first size of a network.
OWN, NARROW, RECOMPUTE = "lacuna, own products", "lacuna, moments in 8 bits", "lacuna, recompute"


def plan(tiny):
    """(shape, batch, length, rank of adapters or None, PyTorch's way), the most telling first."""
    if tiny:
        return [("tiny-gpt2", 2, 16, None, "compiled"), ("tiny-llama", 2, 16, 4, "compiled by blocks")]
    return [
        ("diffugpt-s", 32, 512, None, "compiled"),
        ("diffullama-7b", 4, 512, RANK, "compiled by blocks"),
        ("diffugpt-m", 32, 512, None, "compiled"),
        ("diffugpt-s", 16, 1024, None, "compiled"),
        ("diffullama-7b", 1, 1024, RANK, "compiled by blocks"),
        ("diffugpt-m", 16, 1024, None, "compiled"),
        ("diffugpt-s", 32, 512, None, "eager"),
    ]


class Trainer:
    """A network, its optimiser, and its steps."""

    def __init__(self, machine, name, batch, length, rank, way):
        self.machine, self.torch = machine, machine.torch
        torch, shape = machine.torch, SHAPES[name]
        torch.set_grad_enabled(True)
        self.net = network(torch, shape, machine.device, rank).train()
        check_bidirectional(torch, self.net, shape, machine.device)
        self.about = f"{self.net.about}, {way}"
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
        self.shape, self.batch, self.length = shape, batch, length
        hidden = round(MASKED_SHARE * length)
        self.masked = torch.zeros(batch, length, dtype=torch.bool, device=machine.device)
        self.masked[:, length - hidden :] = True  # the last ones: each is predicted by a row
        self.weight = torch.full((batch, 1), 1.0 / MASKED_SHARE, device=machine.device)
        # On the CPU only whether it can be traced: its compiler takes longer than everything else here.
        compiler = {"dynamic": False, "backend": "inductor" if machine.cuda else "aot_eager"}
        if way == "compiled by blocks":
            for block in self.net.blocks:
                block.compile(**compiler)
        self.loss = self.forward if way == "eager" else torch.compile(self.tail, **compiler)
        if way == "compiled":
            self.loss = torch.compile(self.forward, **compiler)
        elif way == "compiled by blocks":
            tail = self.loss
            self.loss = lambda noised, ids: tail(self.net(noised), ids)

    def tail(self, logits, ids):
        return masked_loss(self.torch, logits, ids, self.masked, self.weight)

    def forward(self, noised, ids):
        return self.tail(self.net(noised), ids)

    def step(self):
        ids = self.torch.randint(self.shape.vocab - 1, (self.batch, self.length), device=self.machine.device)
        noised = ids.masked_fill(self.masked, self.shape.vocab - 1)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(noised, ids)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.last = loss.detach()

    def measure(self, left):
        """Seconds of each step, after some that do not count; fewer than ten only where the time is over."""
        machine, cuda = self.machine, self.torch.cuda
        for _ in range(WARM_UP):
            machine.seconds(self.step)
        if machine.cuda:
            cuda.reset_peak_memory_stats()
        times, least, most = [], *((LEAST, MOST) if machine.cuda else (3, 3))
        while len(times) < least or (len(times) < most and sum(times) < ENOUGH_S):
            times.append(machine.seconds(self.step))
            if left() < 0 and len(times) >= 3:
                break
        peak_bytes = cuda.max_memory_allocated() - machine.flush.numel() if machine.cuda else None
        return times, peak_bytes, float(self.last) / (1.0 / MASKED_SHARE)


def by_torch(machine, name, batch, length, rank, way, left):
    """PyTorch's line. What it took on the card is free again afterwards."""
    row = {"who": "PyTorch", "variant": way, "torch": machine.torch.__version__, "device": machine.name}
    try:
        trainer = Trainer(machine, name, batch, length, rank, way)
        times, peak_bytes, loss = trainer.measure(left)
        seconds, tokens = statistics.median(times), batch * length
        row.update(model=trainer.about, parameters=sum(p.numel() for p in trainer.parameters), seconds=seconds)
        row.update(min_seconds=min(times), runs=len(times), tokens_per_second=tokens / seconds, loss=loss)
        row.update(device_bytes=peak_bytes)
    except Exception as error:  # a compiler that cannot do it, or memory
        row["error"] = brief(error)
    trainer = None
    machine.torch.set_grad_enabled(False)
    machine.torch._dynamo.reset()
    gc.collect()
    machine.forget()
    return row


def by_lacuna(binary, name, batch, length, rank, more, seconds):
    flags = ["bench", "train", "--device", "cuda", "--dtype", "bf16", "--shape", name, "--batch", batch, "--length", length]
    flags += ["--masked", MASKED_SHARE, "--warmup", WARM_UP, "--repeat", LEAST, *more, "--json"]
    flags += ["--lora-rank", rank] if rank else []
    found, error = run_lacuna(binary, flags, seconds)
    found = [line for line in found if line.get("bench") == "train"]
    row = {**(found[-1] if found else {}), "command": " ".join(["lacuna", *map(str, flags)])}
    return {**row, **({"error": error} if error else {})}


def main():
    args = arguments(
        __doc__,
        lacuna={"help": "the binary; without, only PyTorch is measured"},
        without={"action": "store_true", "help": "without PyTorch: only lacuna is measured"},
    )
    lines, clock = Lines(args.output, "train"), Clock(args.seconds)
    machine = None if args.without else Machine(args.tiny)
    if machine:
        machine.torch.set_float32_matmul_precision("high")  # what is left in f32
    todo, seen, sizes = plan(args.tiny), set(), set()
    for done, (name, batch, length, rank, way) in enumerate(todo):
        if clock.left() < 5 and done:
            lines.write(stopped=f"{len(todo) - done} of {len(todo)} sizes not measured: no time left")
            say(f"train: no time left after {done} of {len(todo)} sizes")
            break
        shape, masked = SHAPES[name], round(MASKED_SHARE * length) * batch
        what = {"bench": "train", "shape": name, "batch": batch, "length": length, "lora_rank": rank, "masked": masked}
        counted = training_flops(shape, batch, length, masked, rank is None)
        ways = []
        if args.lacuna and (name, batch, length) not in sizes:
            sizes.add((name, batch, length))
            ways = [("lacuna", [])]
            if name not in seen:
                ways += [(OWN, ["--gemm", "own"])]
                ways += [(RECOMPUTE, ["--recompute"])] if rank else [(NARROW, ["--moments", "8bit"])]
            seen.add(name)
        for who, more in ways:
            if who != "lacuna" and clock.left() < 30:
                continue
            row = by_lacuna(args.lacuna, name, batch, length, rank, more, min(120.0, max(10.0, clock.left())))
            lines.write(**{"flops": counted, **row, **what, "who": who})
            say(f"train: {who} {name} {batch} x {length}: {row.get('seconds', row.get('error'))}")
        # Where it cannot compile, as it comes.
        for way in (way, "eager") if machine else ():
            row = by_torch(machine, name, batch, length, rank, way, clock.left)
            lines.write(**row, **what, flops=counted, peak_flops=peak(machine.name))
            say(f"train: PyTorch, {way}, {name} {batch} x {length}: {row.get('seconds', row.get('error'))}")
            if "error" not in row or "memory" in row["error"] or clock.left() < 20:
                break


if __name__ == "__main__":
    main()
