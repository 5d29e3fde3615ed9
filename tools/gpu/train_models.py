"""The paper's models in PyTorch for training: torch.nn modules of the same maths, GPT-2 whole in f32 under autocast, or LLaMA
in bf16 with adapters. Bidirectional attention without a mask tensor, so that PyTorch's fastest kernels serve; no dropout.
"""

MASKED_SHARE = 0.5
BETAS, EPS, DECAY, RATE, CLIP = (0.9, 0.95), 1e-8, 0.1, 1e-5, 1.0
# Peak dense bf16 FLOP/s by the vendor's data sheets; the first name that occurs in the card's.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)


def peak(device):
    """Of a card by its name, or None."""
    return next((flops for name, flops in PEAKS if name in str(device)), None)


def training_flops(shape, batch, length, masked, weights):
    """Of a step, as the engine counts them (`lacuna bench train`, profile/flops.rs): logits of masked rows alone, twice as much
    on the way back, once as much where matrices get no gradient."""
    attention = 4 * shape.layers * batch * length**2 * shape.width
    linear = 2 * batch * length * shape.weights() + 2 * masked * shape.width * shape.vocab
    return 3 * attention + (3 if weights else 2) * linear


def network(torch, shape, device, rank=None):
    """The modules: GPT-2 trains whole; LLaMA with adapters of `rank`, on every linear layer of its blocks."""
    with torch.device(device):
        net = gpt2(torch, shape) if shape.family == "gpt2" else llama(torch, shape, rank)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
    return net


def gpt2(torch, shape):
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width = shape.width
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, shape.hidden), nn.Linear(shape.hidden, width)

        def forward(self, x):
            batch, length, width = x.shape
            packed = self.qkv(self.norm1(x)).view(batch, length, 3, shape.heads, width // shape.heads)
            q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
            seen = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Gpt2(nn.Module):
        about = "torch.nn modules in the shape of GPT-2, f32 under bf16 autocast, sdpa, AdamW fused"

        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(shape.vocab, shape.width), nn.Embedding(shape.positions, shape.width)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(shape.width)

        def forward(self, ids):
            at = torch.arange(ids.shape[1], device=ids.device)
            with torch.autocast(ids.device.type, dtype=torch.bfloat16):
                x = self.tokens(ids) + self.places(at)
                for block in self.blocks:
                    x = block(x)
                return functional.linear(self.norm(x), self.tokens.weight)

    return Gpt2()


def llama(torch, shape, rank):
    from torch import nn
    from torch.nn import functional

    class Adapted(nn.Module):
        """A frozen matrix in bf16, and an adapter in f32 that computes in bf16: what peft does under autocast."""

        def __init__(self, inputs, outputs):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.bfloat16), requires_grad=False)
            self.down, self.up = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(outputs, rank))

        def forward(self, x):
            low = functional.linear(x, self.down.to(x.dtype))
            return functional.linear(x, self.weight) + 2.0 * functional.linear(low, self.up.to(x.dtype))

    def scale():
        return nn.Parameter(torch.ones(shape.width, dtype=torch.bfloat16), requires_grad=False)

    def norm(x, weight):
        return functional.rms_norm(x, (shape.width,), weight, 1e-5)

    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width, hidden = shape.width, shape.hidden
            self.norm1, self.norm2 = scale(), scale()
            self.q, self.k, self.v, self.out = (Adapted(width, width) for _ in range(4))
            self.gate, self.up, self.down = Adapted(width, hidden), Adapted(width, hidden), Adapted(hidden, width)

        def forward(self, x, cos, sin):
            batch, length, width = x.shape
            y = norm(x, self.norm1)
            q, k, v = (f(y).view(batch, length, shape.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            seen = functional.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
            y = norm(x, self.norm2)
            return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    class Llama(nn.Module):
        about = f"torch.nn modules in the shape of LLaMA, bf16, adapters of rank {rank} in f32, sdpa, AdamW fused"

        def __init__(self):
            super().__init__()
            self.tokens, self.head = (
                nn.Parameter(torch.empty(shape.vocab, shape.width, dtype=torch.bfloat16), requires_grad=False)
                for _ in range(2)
            )
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = scale()

        def forward(self, ids):
            wide = shape.width // shape.heads
            turns = 10000.0 ** (-torch.arange(0, wide, 2, device=ids.device, dtype=torch.float32) / wide)
            angles = torch.cat([torch.arange(ids.shape[1], device=ids.device)[:, None] * turns] * 2, -1)
            x = functional.embedding(ids, self.tokens)
            cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
            for block in self.blocks:
                x = block(x, cos, sin)
            return functional.linear(norm(x, self.norm), self.head)

    return Llama()


def masked_loss(torch, logits, ids, masked, weight):
    """The paper's: cross-entropy of masked tokens through the shift, weighted 1/t, the mean over masked tokens; the logits are
    those of all rows."""
    logits, targets, counted = logits[:, :-1], ids[:, 1:], masked[:, 1:]
    rows = logits.reshape(-1, logits.shape[-1]).float()
    nll = torch.nn.functional.cross_entropy(rows, targets.reshape(-1), reduction="none").view(targets.shape)
    return (weight * nll.masked_fill(~counted, 0.0)).sum() / counted.sum()


def check_bidirectional(torch, net, shape, device):
    """Fails unless the first position sees the last one."""
    x = torch.arange(8, device=device)[None] % shape.vocab
    y = x.clone()
    y[0, -1] = 11 % shape.vocab
    with torch.no_grad():
        if torch.equal(net(x)[0, 0], net(y)[0, 0]):
            raise RuntimeError(f"attention is not bidirectional in {net.about}")
