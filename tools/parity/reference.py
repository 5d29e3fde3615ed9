"""Scores from the definitions, by a model of transformers."""

import json
from pathlib import Path

from check_transformers import check_masks, load, logits_of

from .philox import CORRUPT, TIME, Random
from .questions import TEXT_LENGTH, TEXTS


class Reference:
    """What the definitions say, by a model of transformers."""

    def __init__(self, folder, levels, seed, mask_id, threads):
        import numpy
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.numpy, self.torch = numpy, torch
        self.levels, self.mask_id, self.random = levels, mask_id, Random(seed)
        self.model = load(folder)
        # Whether the masks of attention do what they should: with one of zeros, the first row sees the last token.
        check_masks(self.model, self.model.config.vocab_size)
        if mask_id >= self.model.config.vocab_size:
            raise SystemExit(f"--mask-id {mask_id}: {folder} has {self.model.config.vocab_size} tokens")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.first, self.opens = self.opening(Path(folder))

    def opening(self, folder):
        """The token that a text can begin with, and whether the tokenizer puts it before every text."""
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        file = folder / "tokenizer_config.json"
        own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        by_class = str(own.get("tokenizer_class")).startswith("LlamaTokenizer")
        known = [model.get("bos_token_id"), self.tokenizer.bos_token_id, model.get("eos_token_id")]
        first = next((one for one in known if isinstance(one, int)), None)
        if first is None:
            raise SystemExit(f"{folder}: config.json names neither bos_token_id nor eos_token_id")
        return first, own.get("add_bos_token", by_class)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def losses(self, probes, kind):
        """For each of (what is seen, clean tokens, scored positions) of one length the losses at these positions."""
        out = [[] for _ in probes]
        asked = [i for i, (_, _, at) in enumerate(probes) if at]
        if asked:
            logits = logits_of(self.model, self.torch.tensor([probes[i][0] for i in asked]), kind)
            for i, rows in zip(asked, logits):
                _, clean, at = probes[i]
                # Row i predicts token i + 1.
                rows = rows[[p - 1 for p in at]].double()
                right = self.torch.tensor([clean[p] for p in at])
                out[i] = self.torch.nn.functional.cross_entropy(rows, right, reduction="none").tolist()
        return out

    def probe(self, clean, hidden, by_id):
        """What is seen where the `hidden` positions are masked, and what is scored; position 0 no row predicts."""
        seen = [self.mask_id if i in hidden else token for i, token in enumerate(clean)]
        at = [i for i in range(1, len(clean)) if (seen[i] == self.mask_id if by_id else i in hidden)]
        return seen, clean, at

    def hidden(self, sequence, step, start, end, t):
        """Positions start .. end whose numbers, counted from `start`, are below t."""
        numbers = (self.random.uniform(CORRUPT, sequence, step, i) for i in range(end - start))
        return {start + i for i, u in enumerate(numbers) if u < float(t)}

    def time(self, u):
        """The time of u in [0, 1): from 0.001 to 1, in f32 arithmetic."""
        f32 = self.numpy.float32
        return (f32(1) - f32(1e-3)) * f32(u) + f32(1e-3)

    def scores(self, mode, number, question):
        """The score of every option of a question."""
        prefix, suffix = self.encode(question.prefix), self.encode(question.suffix)
        # The released evaluator leaves the beginning to the tokenizer in some formats, and out in the others.
        before = [self.first] if question.opened and self.opens else []
        if mode != "parity" and (self.opens or not question.prefix):
            prefix = [self.first, *prefix]
        prefix, out = before + prefix, []
        for option, text in enumerate(question.options):
            clean = prefix + before + self.encode(text) + suffix
            out.append(self.score(mode, number, option, clean, len(prefix)))
        return out

    def score(self, mode, number, option, clean, given):
        if mode == "ar":
            return sum(self.losses([(clean, clean, list(range(max(given, 1), len(clean))))], "causal")[0])
        levels = range(self.levels, 0, -1)
        if mode == "elbo":
            times, key = [self.time((level - 0.5) / self.levels) for level in levels], 0
        else:
            times, key = [self.numpy.float32(level / self.levels) for level in levels], option
        hidden = [self.hidden(number, key << 16 | n, given, len(clean), t) for n, t in zip(levels, times)]
        losses = self.losses([self.probe(clean, one, mode == "parity") for one in hidden], "bidirectional")
        if mode == "elbo":
            return sum(sum(loss) / float(t) for loss, t in zip(losses, times)) / self.levels
        return sum(sum(loss) / len(loss) for loss in losses if loss) / self.levels

    def sequences(self):
        """The texts in tokens, cut, with a token that is never masked before each part."""
        size = TEXT_LENGTH - 1
        texts = [self.encode(text) for text in TEXTS]
        return [[self.first, *text[i : i + size]] for text in texts for i in range(0, len(text), size)]

    def bound(self, kind, number, clean):
        """Nats a token of sequence `number`."""
        if kind == "ar":
            return self.score("ar", number, 0, clean, 1) / (len(clean) - 1)
        times, probes = [], []
        for draw in range(self.levels):
            u = self.random.uniform(TIME, number, draw, 0)
            t = self.time((draw + u) / self.levels if kind == "stratified" else u)
            # Here positions count from the token before the text.
            hidden = self.hidden(number, draw, 0, len(clean), t) - {0}
            times.append(t)
            probes.append(self.probe(clean, hidden, by_id=False))
        losses = self.losses(probes, "bidirectional")
        return sum(sum(loss) / float(t) for loss, t in zip(losses, times)) / self.levels / (len(clean) - 1)
