"""The PyTorch side: one process that does one kind of work, so that its peak memory is of that work."""

import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

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


def peak_bytes():
    """The most that this process had resident, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bidirectional(torch, logits, vocab):
    """Fails unless the first position sees the last one."""
    x = torch.arange(8)[None] % vocab
    y = x.clone()
    y[0, -1] = 11 % vocab
    with torch.no_grad():
        if torch.equal(logits(x)[0, 0], logits(y)[0, 0]):
            raise SystemExit("PyTorch's attention is not bidirectional with this version of transformers")


def draw(torch, logits, top_p, temperature=1.0):
    """One token for every row, by the operations of the paper's released sampler and in their order.

    Divide by the temperature; sort the vocabulary; softmax and cumulative sum in that order; what lies beyond top_p is
    marked there, the token that crosses it kept; the marks are scattered back and fill the logits with the least number;
    log-softmax; a draw from torch.distributions.Categorical, as it comes.
    """
    logits = logits / temperature
    ranked, order = torch.sort(logits, descending=True)
    beyond = torch.cumsum(torch.softmax(ranked, -1), -1) > top_p
    beyond[..., 1:] = beyond[..., :-1].clone()
    beyond[..., 0] = False
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, beyond)
    kept = logits.masked_fill(dropped, torch.finfo(logits.dtype).min)
    return torch.distributions.Categorical(logits=torch.log_softmax(kept, -1)).sample()


def made_up_logits(torch, kind, rows, vocab):
    """Logits [rows, vocab] of a kind that both programs make: x uniform in -1 .. 1, then

    peaked      12 x^3, as of a model that has an opinion: most near 0, few far from it
    near-flat   x / 10: all but even, so that top-p keeps most of the vocabulary
    """
    x = 2.0 * torch.rand(rows, vocab, generator=torch.Generator().manual_seed(0)) - 1.0
    return 12.0 * x**3 if kind == "peaked" else 0.1 * x


class Network:
    """The model in PyTorch, without gradients: a forward pass, and the paper's loop over it."""

    def __init__(self, torch, args):
        import transformers

        self.torch, self.mask_id = torch, args.mask_id
        torch.set_grad_enabled(False)
        model = transformers.LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
        self.model = model.eval()
        for layer in model.model.layers:  # checked by bidirectional
            layer.self_attn.is_causal = False
        bidirectional(torch, self.logits, model.config.vocab_size)

    def logits(self, x):
        """Bidirectional logits [B, L, V] of ids [B, L]."""
        return self.model(input_ids=x, use_cache=False).logits

    def forward(self, x, inner):
        """Seconds of `inner` passes after one that is not counted."""
        x = self.torch.tensor(x)
        seconds = []
        for _ in range(inner + 1):
            start = time.perf_counter()
            self.logits(x)
            seconds.append(time.perf_counter() - start)
        return {"seconds": statistics.median(seconds[1:])}

    def generate(self, length, steps, measured, top_p):
        """Seconds of the whole loop over a canvas whose first token is given; of `measured` < `steps` steps, scaled.

        At step s = T..1 every row is drawn, and each masked position keeps its draw with probability 1/s.
        """
        torch = self.torch
        first = torch.ones(1, 1, dtype=torch.long)
        xt = torch.full((1, length), self.mask_id)
        xt[:, :1] = first
        masked = torch.ones_like(xt, dtype=torch.bool)
        masked[:, 0] = False
        draw(torch, self.logits(xt), top_p)  # a warm-up, not counted
        start = time.perf_counter()
        for k in range(measured):
            drawn = draw(torch, self.logits(xt), top_p)
            predicted = torch.cat([first, drawn[:, :-1]], 1)  # row i predicts position i + 1
            commit = masked & (torch.rand(xt.shape) < 1.0 / (steps - k))
            xt[commit] = predicted[commit]
            masked &= ~commit
        seconds = time.perf_counter() - start
        if measured == steps and bool(masked.any()):
            raise SystemExit("the loop left masked positions behind")
        return {"seconds": seconds * steps / measured, "nfe": steps}


class Sampling:
    """The sampling step by itself, over logits that are made up."""

    def __init__(self, torch, args):
        self.torch, self.made = torch, {}

    def sample(self, rows, vocab, top_p, logits, inner):
        """Seconds of a draw for each of `rows` rows, after one that is not counted."""
        torch, what = self.torch, (logits, rows, vocab)
        if what not in self.made:
            self.made = {what: made_up_logits(torch, *what)}
        seconds = []
        for _ in range(inner + 1):
            start = time.perf_counter()
            draw(torch, self.made[what], top_p)
            seconds.append(time.perf_counter() - start)
        return {"seconds": statistics.median(seconds[1:])}


class Training:
    """Whole training steps: the paper's loss, gradients clipped to norm 1, AdamW as it comes."""

    def __init__(self, torch, args):
        import transformers

        self.torch = torch
        torch.manual_seed(0)
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation=args.attention[0]
        )
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **HYPERPARAMETERS)
        self.vocab = self.model.config.vocab_size
        open_mask = torch.zeros(1, 1, 8, 8)
        bidirectional(torch, lambda x: self.model(input_ids=x, attention_mask=open_mask, use_cache=False).logits, self.vocab)

    def train(self, batch, length, share, steps, warmup):
        """Seconds of `steps` steps after `warmup` others: zero_grad, forward, loss, backward, clipping, update."""
        torch = self.torch
        functional = torch.nn.functional
        mask_id = self.vocab - 1
        additive = torch.zeros(batch, 1, length, length)  # every query sees every key
        mask = torch.zeros(batch, length, dtype=torch.bool)
        mask[:, length - round(share * length) :] = True  # the last ones: each is predicted by a row
        weight = torch.full((batch, 1), 1.0 / share)
        seconds = []
        for step in range(warmup + steps):
            start = time.perf_counter()
            x0 = torch.randint(0, mask_id, (batch, length))
            xt = x0.masked_fill(mask, mask_id)
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.model(input_ids=xt, attention_mask=additive, use_cache=False).logits
            logits, target, counted = logits[:, :-1], x0[:, 1:], mask[:, 1:]
            nll = functional.cross_entropy(logits.reshape(-1, self.vocab), target.reshape(-1), reduction="none")
            nll = nll.view(batch, -1).masked_fill(~counted, 0.0)
            loss = (weight * nll).sum() / counted.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            loss = loss.item()
            if step >= warmup:
                seconds.append(time.perf_counter() - start)
        self.check(loss)
        return {"seconds": statistics.median(seconds), "loss": loss, "optimizer": self.variant()}

    def check(self, loss):
        """Fails unless weights and moments are f32, and the loss a number."""
        torch = self.torch
        state = self.optimizer.state[self.model.model.embed_tokens.weight]
        formats = {str(state[name].dtype) for name in ("exp_avg", "exp_avg_sq")} | {str(self.model.dtype)}
        if formats != {"torch.float32"} or loss != loss:
            raise SystemExit(f"weights and moments are {formats}, the loss {loss}: expected torch.float32 and a number")
        torch.manual_seed(0)

    def variant(self):
        """Which of its three implementations a torch.optim.AdamW takes for its parameters."""
        from torch.optim.optimizer import _default_to_fused_or_foreach as choose

        group = self.optimizer.param_groups[0]
        fused, foreach = group.get("fused"), group.get("foreach")
        if fused is None and foreach is None:
            fused, foreach = choose(group["params"], differentiable=False, use_fused=False)
        return "fused" if fused else "foreach" if foreach else "one tensor at a time"


KINDS = {"forward": Network, "generate": Network, "sample": Sampling, "train": Training}


def serve(args):
    """Reads one JSON command a line, answers with one JSON line each; the first line says what computes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    import torch

    torch.set_num_threads(args.threads)
    if args.serve != "sample":
        import transformers

        transformers.utils.logging.disable_progress_bar()
    imported = peak_bytes()
    side = KINDS[args.serve](torch, args)

    def answer(fields):
        print(json.dumps({**fields, "peak_memory_bytes": peak_bytes()}), file=answers, flush=True)

    parameters = sum(p.numel() for p in side.model.parameters()) if hasattr(side, "model") else None
    capability = torch.backends.cpu.get_cpu_capability().lower()
    answer({
        "torch": torch.__version__, "transformers": importlib.metadata.version("transformers"), "parameters": parameters,
        "imported_bytes": imported, "device": f"cpu, {torch.get_num_threads()} threads, {capability}",
    })  # fmt: skip
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(side, args.serve)(**command))


def write_made_up(folder, config=SHAPE, seed=0):
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
