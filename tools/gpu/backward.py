"""Part 7 of tools/gpu_check.sh: PyTorch's way back through single operations, and its optimiser, at the sizes of
`lacuna bench kernels --filter training` (sizes.py). Forward passes are done beforehand and not timed, but for the masked loss,
whose forward and backward belong together in both programs.
"""

import sizes
from common import Machine, arguments
from kernels import FILTER, Cases, measure

IGNORED = -100


class TrainingCases(Cases):
    """For each kind of work the ways PyTorch has."""

    def leaf(self, case, *shape):
        return self.floats(case, *shape).requires_grad_()

    def backward(self, out, inputs, gradient):
        """The gradients of `inputs`, from a graph that is kept."""
        return lambda: self.torch.autograd.grad(out, inputs, gradient, retain_graph=True)

    def attention_backward(self, case):
        from torch.nn.attention import sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        batch, heads, length, width = (case[k] for k in ("batch", "heads", "length", "width"))
        packed = self.leaf(case, batch, length, 3, heads, width)
        gradient = self.floats(case, batch, length, heads, width).transpose(1, 2)

        def by(backend):
            made = []

            def work():
                # The graph is made in the first call, which does not count; a backend that cannot says so there.
                if not made:
                    with self.torch.enable_grad(), sdpa_kernel(backend):
                        q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
                        made.append(self.backward(scaled_dot_product_attention(q, k, v), (q, k, v), gradient))
                return made[0]()

            return work

        return [(name, by(backend)) for name, backend in self.backends().items() if name != "math" or not self.machine.cuda]

    def masked_loss(self, case):
        """All rows through the head, as the reference trainers do, with the rows that are not masked ignored by the loss."""
        torch, functional, rows = self.torch, self.torch.nn.functional, case["rows"]
        hidden = self.leaf(case, rows, case["width"])
        weight = (0.05 * self.floats(case, case["vocab"], case["width"])).requires_grad_()
        targets = self.below(case["vocab"], rows)
        targets[torch.randperm(rows, device=targets.device)[case["masked"] :]] = IGNORED

        def loss(wide):
            def run(hidden, weight):
                logits = functional.linear(hidden, weight)
                return functional.cross_entropy(logits.float() if wide else logits, targets, ignore_index=IGNORED)

            return run

        def way(run):
            def work():
                with torch.enable_grad():
                    return torch.autograd.grad(run(hidden, weight), (hidden, weight))

            return work, lambda: self.extra(work)

        ways = [("eager", loss(False)), ("eager, loss in f32", loss(True))]
        # On the CPU only whether it can be traced: its compiler takes longer than everything else here.
        compiler = "inductor" if self.machine.cuda else "aot_eager"
        ways.append(("compiled", torch.compile(loss(True), dynamic=False, backend=compiler)))
        return [(name, *way(run)) for name, run in ways]

    def extra(self, work):
        """Bytes that were in use at the same time beyond inputs and gradients."""
        if not self.machine.cuda:
            return {}
        cuda = self.torch.cuda
        self.machine.forget()
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        gradients = work()
        cuda.synchronize()
        kept = sum(g.numel() * g.element_size() for g in gradients)
        return {"extra_bytes": cuda.max_memory_allocated() - before - kept}

    def weight_gradient(self, case):
        x, dy = (self.floats(case, case["rows"], case[k]) for k in ("inputs", "outputs"))
        if case["layout"] == "in, out":
            return [("matmul", lambda: self.torch.mm(x.t(), dy))]
        return [("matmul", lambda: self.torch.mm(dy.t(), x))]

    def norm_backward(self, case):
        functional, width = self.torch.nn.functional, case["width"]
        x, weight, bias = self.leaf(case, case["rows"], width), self.leaf(case, width), self.leaf(case, width)
        gradient = self.floats(case, case["rows"], width)

        def formula():
            wide = x.float()
            return weight * (wide * self.torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

        with self.torch.enable_grad():
            if case["kind"] == "LayerNorm":
                out = functional.layer_norm(x, (width,), weight, bias, 1e-5)
                return [("layer_norm", self.backward(out, (x, weight, bias), gradient))]
            ways = [("formula of transformers", self.backward(formula(), (x, weight), gradient))]
            if hasattr(functional, "rms_norm"):
                out = functional.rms_norm(x, (width,), weight, 1e-5)
                ways.insert(0, ("rms_norm", self.backward(out, (x, weight), gradient)))
        return ways

    def adamw(self, case):
        """Fused, everything in f32, whatever the format of our moments."""
        torch = self.torch
        weight = torch.nn.Parameter(torch.rand(case["count"], device=self.machine.device) - 0.5)
        weight.grad = 0.01 * (torch.rand_like(weight) - 0.5)
        settings = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        optimizer = torch.optim.AdamW([weight], fused=True, **settings)
        return [("AdamW, fused, f32", optimizer.step)]


def main():
    args = arguments(__doc__, filter=FILTER)
    measure(args, "backward", sizes.training_cases(args.tiny), TrainingCases(Machine(args.tiny)))


if __name__ == "__main__":
    main()
