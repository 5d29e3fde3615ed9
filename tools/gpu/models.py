"""The paper's models in PyTorch, with random weights: transformers' modules, or where that is not installed the same
network in torch.nn (it says which). Speed does not depend on what the weights are.

Both give `logits(ids)`, bidirectional over whole sequences, and `decode(ids, state)`, causal with a cache of keys and values.

Run by itself it prints the shapes, one JSON object a line; their names are those of `lacuna bench generate --shape`, and
tests/gpu_check.rs compares them with the engine's.
"""

import inspect
import json
from dataclasses import asdict, dataclass

from common import brief


@dataclass(frozen=True)
class Shape:
    name: str
    family: str  # "gpt2" or "llama"
    layers: int
    width: int
    heads: int
    hidden: int
    vocab: int
    positions: int

    def weights(self):
        """Numbers in the matrices that every position is multiplied by; the head is apart."""
        matrices = 4 * self.width**2 + (2 if self.family == "gpt2" else 3) * self.width * self.hidden
        return self.layers * matrices

    def flops(self, batch, length):
        """Of a forward pass over everything, logits of all rows included."""
        rows = batch * length
        products = 2 * rows * (self.weights() + self.width * self.vocab)
        return products + 4 * self.layers * rows * length * self.width


SHAPES = {
    s.name: s
    for s in (
        Shape("diffugpt-s", "gpt2", 12, 768, 12, 3072, 50257, 1024),
        Shape("diffugpt-m", "gpt2", 24, 1024, 16, 4096, 50258, 1024),
        Shape("diffullama-7b", "llama", 32, 4096, 32, 11008, 32000, 4096),
        Shape("tiny-gpt2", "gpt2", 2, 64, 2, 256, 101, 64),
        Shape("tiny-llama", "llama", 2, 64, 2, 96, 101, 64),
    )
}


def build(torch, shape, device, dtype, own=False):
    """The network, by transformers unless `own` or that cannot be used. Fails where it computes something else: see check."""

    def checked(make, *more):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                net = make(torch, shape, *more)
        finally:
            torch.set_default_dtype(before)
        net.check(shape)
        return net

    why = "asked for"
    if not own:
        try:
            import transformers

            return checked(OfTransformers, transformers)
        except torch.cuda.OutOfMemoryError:
            raise
        except ImportError:
            why = "transformers is not installed"
        except Exception as error:  # another version's ways
            why = f"transformers cannot be used: {brief(error)}"
    return checked(own_network, why)


class Network:
    """What both have."""

    def check(self, shape):
        """Whether whole passes see both ways, and decoding one way, with a cache as without."""
        torch = self.torch
        x = torch.arange(8, device=self.device)[None] % shape.vocab
        y = x.clone()
        y[0, -1] = 11 % shape.vocab
        if torch.equal(self.logits(x)[0, 0], self.logits(y)[0, 0]):
            raise RuntimeError(f"attention is not bidirectional in {self.about}")
        first = self.decode(x, None)[0][0, 0]
        if not torch.equal(first, self.decode(y, None)[0][0, 0]):
            raise RuntimeError(f"attention with a cache is not causal in {self.about}")
        last = self.decode(x, None)[0][0, -1].float()
        cached = self.decode(x[:, -1:], self.decode(x[:, :-1], None)[1])[0][0, -1].float()
        if not (cached - last).norm() < 0.05 * last.norm():
            raise RuntimeError(f"a cache changes the logits in {self.about}")


class OfTransformers(Network):
    def __init__(self, torch, shape, transformers):
        transformers.utils.logging.set_verbosity_error()
        self.torch = torch
        if shape.family == "gpt2":
            config = transformers.GPT2Config(
                n_layer=shape.layers,
                n_embd=shape.width,
                n_head=shape.heads,
                n_inner=shape.hidden,
                vocab_size=shape.vocab,
                n_positions=shape.positions,
                attn_implementation="sdpa",
            )
            self.net = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.LlamaConfig(
                num_hidden_layers=shape.layers,
                hidden_size=shape.width,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.heads,
                intermediate_size=shape.hidden,
                vocab_size=shape.vocab,
                max_position_embeddings=shape.positions,
                attn_implementation="sdpa",
            )
            self.net = transformers.LlamaForCausalLM(config)
        self.net.eval()
        self.device = next(self.net.parameters()).device
        self.attentions = [m for m in self.net.modules() if hasattr(m, "is_causal")]
        self.about = f"transformers {transformers.__version__}, {type(self.net).__name__}, sdpa"
        parameters = inspect.signature(self.net.forward).parameters
        self.cache = "cache" if "cache" in parameters else "past_key_values"

    def causal(self, on):
        # No mask is made then, so that the fastest of PyTorch's attention kernels can serve.
        self.net.config.is_causal = on
        for module in self.attentions:
            module.is_causal = on

    def logits(self, ids):
        self.causal(False)
        return self.net(input_ids=ids, use_cache=False).logits

    def decode(self, ids, state):
        """Logits of the new positions, and the cache with them in it."""
        self.causal(True)
        out = self.net(input_ids=ids, use_cache=True, **{self.cache: state})
        return out.logits, out[self.cache] if self.cache in out else out["past_key_values"]


def own_network(torch, shape, why):
    from torch import nn
    from torch.nn import functional

    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            bias, norm = shape.family == "gpt2", nn.LayerNorm if shape.family == "gpt2" else nn.RMSNorm
            self.norm1, self.norm2 = norm(shape.width), norm(shape.width)
            self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=bias)
            self.out = nn.Linear(shape.width, shape.width, bias=bias)
            self.up = nn.Linear(shape.width, shape.hidden * (1 if bias else 2), bias=bias)
            self.down = nn.Linear(shape.hidden, shape.width, bias=bias)

        def forward(self, x, angles, past, causal):
            batch, length, width = x.shape
            packed = self.qkv(self.norm1(x)).view(batch, length, 3, shape.heads, width // shape.heads)
            q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
            if angles is not None:
                q, k = rotate(q, *angles), rotate(k, *angles)
            if past is not None:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=causal and length > 1)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
            y = self.up(self.norm2(x))
            if shape.family == "gpt2":
                y = functional.gelu(y, approximate="tanh")
            else:
                gate, y = y.chunk(2, -1)
                y = functional.silu(gate) * y
            return x + self.down(y), (k, v)

    class Net(nn.Module, Network):
        def __init__(self):
            super().__init__()
            self.torch = torch
            self.tokens = nn.Embedding(shape.vocab, shape.width)
            self.places = nn.Embedding(shape.positions, shape.width) if shape.family == "gpt2" else None
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(shape.width) if shape.family == "gpt2" else nn.RMSNorm(shape.width)
            self.head = nn.Linear(shape.width, shape.vocab, bias=False)
            self.device = self.head.weight.device
            self.about = f"torch.nn modules of this script ({why}), sdpa"

        def run(self, ids, state, causal):
            done = 0 if state is None else state[0][0].shape[2]
            at = torch.arange(done, done + ids.shape[1], device=ids.device)
            x, angles = self.tokens(ids), None
            if self.places is not None:
                x = x + self.places(at)
            else:
                wide = shape.width // shape.heads
                turns = 10000.0 ** (-torch.arange(0, wide, 2, device=ids.device, dtype=torch.float32) / wide)
                turned = torch.cat([at[:, None].float() * turns] * 2, -1)
                angles = turned.cos().to(x.dtype), turned.sin().to(x.dtype)
            kept = []
            for i, block in enumerate(self.blocks):
                x, kv = block(x, angles, None if state is None else state[i], causal)
                kept.append(kv)
            return self.head(self.norm(x)), kept

        def logits(self, ids):
            return self.run(ids, None, False)[0]

        def decode(self, ids, state):
            return self.run(ids, state, True)

    return Net().eval()


if __name__ == "__main__":
    for shape in SHAPES.values():
        print(json.dumps(asdict(shape)))
