"""Part 5 of tools/gpu_check.sh: PyTorch's operations at the sizes of `lacuna bench kernels` (sizes.py), each as a user of
PyTorch would write it, in eager mode. Where there are several ways, each is a variant with a time of its own.
"""

import math

import sizes
from common import Clock, Lines, Machine, arguments, brief, say, summary


class Cases:
    """For each kernel file the ways PyTorch has: (name, function) pairs, the inputs made."""

    def __init__(self, machine):
        self.machine, self.torch = machine, machine.torch

    def floats(self, case, *shape):
        return self.torch.rand(shape, device=self.machine.device, dtype=self.machine.dtype(case["dtype"])) * 2 - 1

    def logits(self, case):
        return 12 * self.floats(case, case["rows"], case["vocab"]) ** 3

    def below(self, most, count):
        return self.torch.randint(most, (count,), device=self.machine.device)

    def backends(self):
        """Of attention, by the name that the report has for each."""
        from torch.nn.attention import SDPBackend

        names = {
            "flash": "FLASH_ATTENTION",
            "cuDNN": "CUDNN_ATTENTION",
            "mem-efficient": "EFFICIENT_ATTENTION",
            "math": "MATH",
        }
        backends = {name: getattr(SDPBackend, word, None) for name, word in names.items()}
        return {name: backend for name, backend in backends.items() if backend is not None}

    def attention(self, case):
        from torch.nn.attention import sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        batch, heads, length, width = (case[k] for k in ("batch", "heads", "length", "width"))
        # As a model has them: heads side by side in each row of a projection.
        packed = self.floats(case, batch, length, 3, heads, width)
        q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))

        def by(backend):
            def work():
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(q, k, v)

            return work

        return [(name, by(backend)) for name, backend in self.backends().items()]

    def matmul(self, case):
        functional = self.torch.nn.functional
        x = self.floats(case, case["rows"], case["inputs"])
        # PyTorch has the weight as its own layer stores it, [out, in]; for GPT-2's [in, out] also the product as it is there.
        weight = 0.05 * self.floats(case, case["outputs"], case["inputs"])
        ways = [("linear", lambda: functional.linear(x, weight))]
        if case["layout"] == "in, out":
            turned = weight.t().contiguous()
            ways.append(("matmul [in, out]", lambda: self.torch.mm(x, turned)))
        return ways

    def norm(self, case):
        functional, width = self.torch.nn.functional, case["width"]
        x, stream = (self.floats(case, case["rows"], width) for _ in range(2))
        weight, bias = 1 + 0.1 * self.floats(case, width), self.floats(case, width)

        def formula(y):
            wide = y.float()
            scale = self.torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
            return weight * (wide * scale).to(y.dtype)

        if case["kind"] == "LayerNorm":
            ways = [("layer_norm", lambda y: functional.layer_norm(y, (width,), weight, bias, 1e-5))]
        else:
            ways = [("formula of transformers", formula)]
            if hasattr(functional, "rms_norm"):
                ways.insert(0, ("rms_norm", lambda y: functional.rms_norm(y, (width,), weight, 1e-5)))
        if case["residual"]:
            return [(f"add, {name}", lambda f=f: f(stream.add_(x))) for name, f in ways]
        return [(name, lambda f=f: f(x)) for name, f in ways]

    def rope(self, case):
        rows, heads, width = case["rows"], case["heads"], case["width"]
        packed = self.floats(case, rows, 3, heads, width)
        places = self.torch.arange(rows, device=self.machine.device) % 2048
        turns = 10000.0 ** (-self.torch.arange(0, width, 2, device=self.machine.device) / width)
        angles = self.torch.cat([places[:, None] * turns] * 2, -1)[:, None]
        cos, sin = (f(angles).to(packed.dtype) for f in (self.torch.cos, self.torch.sin))

        def rotate(x):
            first, second = x[..., : width // 2], x[..., width // 2 :]
            return x * cos + self.torch.cat((-second, first), -1) * sin

        def work():
            return rotate(packed[:, 0]), rotate(packed[:, 1]), packed[:, 2].contiguous()

        return [("formula of transformers", work)]

    def activation(self, case):
        functional, width = self.torch.nn.functional, case["width"]
        if case["kind"] == "GELU":
            x = self.floats(case, case["rows"], width)
            return [("gelu", lambda: functional.gelu(x, approximate="tanh"))]
        x = self.floats(case, case["rows"], 2 * width)
        return [("silu, multiply", lambda: functional.silu(x[:, :width]) * x[:, width:])]

    def embedding(self, case):
        functional = self.torch.nn.functional
        table, ids = self.floats(case, case["vocab"], case["width"]), self.below(case["vocab"], case["rows"])
        if not case["positions"]:
            return [("embedding", lambda: functional.embedding(ids, table))]
        places = self.floats(case, 2048, case["width"])
        at = self.torch.arange(case["rows"], device=self.machine.device) % 2048
        return [("embedding twice, add", lambda: functional.embedding(ids, table) + functional.embedding(at, places))]

    def unmask(self, case):
        torch, logits, rule = self.torch, self.logits(case), case["rule"]

        def draw(kept):
            return torch.multinomial(torch.softmax(kept.float(), -1), 1)

        def top_k():
            edge = torch.topk(logits, min(40, case["vocab"])).values[:, -1:]
            return draw(logits.masked_fill(logits < edge, -math.inf))

        ways = {
            "greedy": ("argmax", lambda: logits.argmax(-1)),
            "sampled": ("softmax, multinomial", lambda: draw(logits)),
            "top-k 40": ("topk, softmax, multinomial", top_k),
            "top-p 0.9": ("sort, cumsum, softmax, multinomial", lambda: draw(top_p(torch, logits, 0.9))),
        }
        return [ways[rule]]

    def head(self, case):
        logits, targets = self.logits(case), self.below(case["vocab"], case["rows"])
        cross_entropy = self.torch.nn.functional.cross_entropy
        return [("cross_entropy", lambda: cross_entropy(logits, targets, reduction="none"))]

    def cast(self, case):
        x, to = self.floats(case, case["count"]), self.machine.dtype(case["to"])
        return [("to", lambda: x.to(to))]


def top_p(torch, logits, p):
    """The logits of the most probable tokens that together reach p, the one that crosses it included; -inf elsewhere."""
    ordered, order = torch.sort(logits, dim=-1, descending=True)
    mass = torch.softmax(ordered.float(), -1)
    beyond = mass.cumsum(-1) - mass > p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)


def measure(args, part, cases, ways):
    """Times every way of every case. A way is a name, a function, and where there is more to know of it, a function for that."""
    lines, clock, machine = Lines(args.output, part), Clock(args.seconds), ways.machine
    cases = [c for c in cases if args.filter in c["stem"] or args.filter in c["shape"]]
    for done, case in enumerate(cases):
        if clock.left() < 0:
            lines.write(stopped=f"{len(cases) - done} of {len(cases)} sizes not measured: no time left")
            break
        row = {"bench": "kernel", "who": "PyTorch", "torch": machine.torch.__version__, "device": machine.name}
        row.update({key: case[key] for key in ("stem", "shape", "dtype", "flops") if key in case})
        try:
            variants = getattr(ways, case.get("way", case["stem"]))(case)
        except RuntimeError as error:
            lines.write(**row, error=brief(error))
            continue
        for name, work, *more in variants:
            try:
                fields = summary(machine.microseconds(work))
                for also in more:
                    fields.update(also())
                lines.write(**row, variant=name, **fields)
            except Exception as error:  # a backend or a compiler that cannot do it, or memory
                lines.write(**row, variant=name, error=brief(error))
        variants = work = more = None
        machine.forget()
    say(f"{part}: {len(cases)} sizes of PyTorch")


FILTER = {"default": "", "help": "only kernel files or sizes that contain this"}


def main():
    args = arguments(__doc__, filter=FILTER)
    measure(args, "kernels", sizes.cases(args.tiny), Cases(Machine(args.tiny)))


if __name__ == "__main__":
    main()
