#!/usr/bin/env python3
"""Does lacuna eval score texts as its definitions say? An independent computation in PyTorch, side by side.

20 made-up questions, five in each published format (HellaSwag, WinoGrande, Social IQa, PIQA), and three short texts are
written to files and scored twice: by lacuna, and here, from the definitions in docs/evaluation.md, with transformers'
model in f32 on the CPU. Of lacuna nothing is used but the scores that are compared:

  parity      lacuna eval mc --parity, the released evaluator of "Scaling Diffusion Language Models via Adaptation from
              Autoregressive Models" (HKUNLP/DiffuLLaMA, evaluation/eval-diffugpt.py and eval_forward)
  paper       lacuna eval mc --scoring paper: the same score of texts with spaces where tokenizers expect them, over
              what was masked
  elbo        lacuna eval mc --scoring elbo: the bound, with the same times and masks for all options
  ar          lacuna eval mc --ar: from left to right
  nelbo       lacuna eval nelbo of the texts, with --times stratified and independent, and with --ar: nats a token

Which tokens are masked follows from the seed: random numbers are Philox4x32-10, written here once more and checked
against the known answers of its authors. Row i of the logits predicts token i + 1. SmolLM2 has no mask token; token 0,
<|endoftext|>, stands in for it, and some of the texts hold it.

The result is a Markdown table on standard output; what differs and progress go to standard error. PyTorch is looked
for in the interpreter that runs this, else in tools/.venv, which is made on first use (a few gigabytes from PyPI).

examples:
  tools/eval_parity.py                                      all of it on target/smollm2, some minutes on one core
  tools/eval_parity.py --only parity,nelbo --json parity.json
  tools/eval_parity.py --levels 32 --seed 1 --lacuna target/release/lacuna
  tools/eval_parity.py --model gpt2 --mask-id 10541         another model, in a folder that transformers reads

Exit codes: 0 all agree, 1 something differs or a program failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from check_transformers import check_masks, load, logits_of
from compare.setup import MODEL, PACKAGES, find_lacuna, find_model, find_python, say

# Largest relative difference of a score. Two f32 computations are mostly a hundred times nearer; on the shortest
# question of Social IQa, PyTorch's f32 is half of it away from f64.
TOLERANCE = 2e-4
CHOICE_MODES = {
    "parity": ["--parity"],
    "paper": ["--scoring", "paper"],
    "elbo": ["--scoring", "elbo"],
    "ar": ["--ar"],
}
TEXT_MODES = {
    "stratified": ["--times", "stratified"],
    "independent": ["--times", "independent"],
    "ar": ["--ar"],
}
MODES = [*CHOICE_MODES, "nelbo"]
MOST_LEVELS = 2**16 - 1
# Tokens of a sequence of the texts: each text becomes several, the last of them shorter.
TEXT_LENGTH = 32


# ---------------------------------------------------------------- questions, all made up

HELLASWAG = [
    {
        "activity_label": "Repairing a bicycle",
        "ctx_a": "A man turns his bicycle upside down on the pavement.",
        "ctx_b": "he",
        "endings": [
            "takes off the front wheel and pulls out the tube.",
            "pours the bicycle into a tall glass and drinks it.",
            "reads a newspaper to the saddle until it falls asleep.",
            "sits down on the wheels and rides away over the roofs.",
        ],
        "label": 0,
    },
    {
        "activity_label": "Feeding ducks",
        "ctx_a": "An old woman in a green coat walks to the pond with a paper bag.  The ducks come closer.",
        "ctx_b": "the woman, who comes from Chicago and is called O'Neill,",
        "endings": [
            "paints a fence behind the pond in two colours.",
            "takes some oats out of the bag and throws them on the water.",
            "puts on the bag and swims across.",
            "counts to ten in French and leaves on a camel.",
        ],
        "label": "1",
    },
    {
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to keep herbs fresh [title] Cut the stems. [step] Use sharp scissors, and take off a "
        "finger's width. [substeps]",
        "ctx_b": "",
        "endings": [
            "Throw the scissors away after every stem. [title] Buy new ones.",
            "[substeps] Never let the herbs see the scissors.",
            "Put the stems in a glass of cold water. [title] Cover the leaves. [step] A loose bag will do. [substeps]",
            "Fry the glass [title] and serve it with salt.",
        ],
        "label": 2,
    },
    {
        "activity_label": "Snow",
        "ctx_a": "It snows.",
        "endings": ["Children build a snowman.", "Fish climb trees.", "The desert sings.", "A spoon votes."],
        "label": "0",
    },
    {
        "activity_label": "Playing the cello",
        "ctx_a": "A girl sits on a chair in an empty hall and tunes her cello. She closes her eyes, takes a deep "
        "breath, and waits until the last people have found their seats. Then the lamps above the stage go out one by "
        "one, and only a small light next to the notes stays on.",
        "ctx_b": "she lifts her bow and",
        "endings": [
            "hammers a nail into the floor of the hall.",
            "sells the first row of seats to a passing sailor.",
            "boils an egg for the conductor, who is in the café.",
            "begins to play, very softly, a long and slow melody.",
        ],
        "label": 3,
    },
]

WINOGRANDE = [
    {
        "sentence": "The suitcase did not fit into the locker because the _ was too small.",
        "option1": "suitcase",
        "option2": "locker",
        "answer": "2",
    },
    {
        "sentence": "_ asked Maria for the recipe, because Johanna's soup had turned out far better than expected.",
        "option1": "Maria",
        "option2": "Johanna",
        "answer": 1,
    },
    {
        "sentence": "Ben lent Carl his tent for the long weekend in the hills, and on Monday it was returned to _",
        "option1": "Ben",
        "option2": "Carl",
        "answer": "1",
    },
    {
        "sentence": "The gardener (_) watered the roses while the plumber waited in the kitchen, "
        "so that in the evening the bed was wet and the tap still dripped.",
        "option1": "a patient woman from the village",
        "option2": "a broken pipe",
        "answer": "1",
    },
    {
        "sentence": "The violin sounds better than the trumpet in this room, since the  _  is not as loud.",
        "option1": "violin",
        "option2": "trumpet",
        "answer": 1,
    },
]

SIQA = [
    {
        "context": "Robin forgot the keys in the office and rang at the neighbour's door late in the evening.",
        "question": "What did Robin want?",
        "answerA": "a place to wait",
        "answerB": "to learn the piano",
        "answerC": "to complain about the weather",
        "label": "1",
    },
    {
        "context": "Kim had practised the speech for three weeks and did not stumble once.",
        "question": "How would Kim feel afterwards?",
        "answerA": "hungry for stones",
        "answerB": "proud and relieved",
        "answerC": "ashamed",
        "label": "2",
    },
    {
        "context": "Alex saw that the new pupil stood alone in the yard.",
        "question": "What will Alex do next?",
        "answerA": "call the fire brigade",
        "answerB": "lock the gate",
        "answerC": "go over and ask whether they want to play together",
        "correct": "C",
    },
    {
        "context": "After a heated discussion about who should wash up, Sasha simply did it, and then — without a "
        "word — made tea for everybody in the flat, even for the guests who had come without being asked.",
        "question": "How would you describe Sasha?",
        "answerA": "cruel",
        "answerB": "kind",
        "answerC": "made of glass, as far as one can see from here",
        "label": 2,
    },
    {
        "context": "Jo lost.",
        "question": "Why?",
        "answerA": "The other was faster.",
        "answerB": "Yes",
        "answerC": "Because bananas.",
        "label": 1,
    },
]

PIQA = [
    {
        "goal": "How do I get candle wax out of a tablecloth?",
        "sol1": "Put paper over the wax and iron it, so that the paper takes up the wax.",
        "sol2": "Put paper over the wax and freeze it, so that the paper takes up the table.",
        "label": 0,
    },
    {
        "goal": "keep a cutting board from slipping",
        "sol1": "Lay a buttered knife under it.",
        "sol2": "Lay a damp towel under it.",
        "label": "1",
    },
    {
        # The mask token, in what is given and in what is masked.
        "goal": "To end a document<|endoftext|>for a language model, which token is written?",
        "sol1": "Behind the last word comes <|endoftext|> and nothing else.",
        "sol2": "Behind the last word come <|endoftext|><|endoftext|> and a picture of a horse.",
        "label": 0,
    },
    {"goal": "spoon", "sol1": "can stir soup ", "sol2": "can stir a house ", "label": 0},
    {
        "goal": "To find out whether an egg is still fresh without breaking it, when no date is printed on the box and "
        "nobody remembers when it was bought,",
        "sol1": "shine a torch at the fridge, and if the fridge hums in B flat, the egg has been there for 12 years.",
        "sol2": "lay it in a bowl of cold water: a fresh egg stays at the bottom, an old one rises to the surface.",
        "label": "1",
    },
]

QUESTIONS = {"hellaswag": HELLASWAG, "winogrande": WINOGRANDE, "siqa": SIQA, "piqa": PIQA}

TEXTS = [
    "The ferry to the island leaves at seven in the morning, and in winter it is the only one. Those who miss it have "
    "a long day before them: the harbour has a bench, a kiosk that opens at ten, and a view of the ferry getting "
    "smaller. Most people miss it once. On the next day they are there at half past six, with a thermos flask and a "
    "sheepish look.",
    "Water boils at a lower temperature on a mountain, because there is less air above it.",
    "A naïve rule: every document ends with a mark.<|endoftext|>The mark belongs to the document — not to the next "
    "one, which begins with a word of its own.\nA program that counts documents counts the marks.",
]


# ---------------------------------------------------------------- random numbers

CORRUPT, TIME = 4, 5
WORD = 0xFFFFFFFF
# Counter, key and result of Philox4x32-10: kat_vectors of Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def philox(counter, key):
    """Philox4x32 with 10 rounds (Salmon et al., SC 2011): four words from a counter of four and a key of two."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & WORD, (p >> 32) ^ d ^ m, p & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return [a, b, c, d]


def check_philox():
    for words in KNOWN_ANSWERS:
        counter, key, expected = ([int(word, 16) for word in row.split()] for row in words)
        if philox(counter, key) != expected:
            raise SystemExit(f"the Philox of this script is wrong: counter {words[0]}, key {words[1]}")


class Random:
    """Uniform numbers in [0, 1) by what they are for."""

    def __init__(self, seed):
        self.key = [seed & WORD, seed >> 32]

    def uniform(self, purpose, sequence, step, position):
        return (philox([position, step, sequence, purpose], self.key)[0] >> 8) / 2**24


# ---------------------------------------------------------------- texts of a question

Question = namedtuple("Question", "prefix options suffix gold")


def without_marks(text):
    """`preprocess` of the released evaluator."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(item, parity):
    begun = item.get("ctx_b", "")
    begun = begun.capitalize() if parity else begun[:1].upper() + begun[1:]
    prefix = without_marks(f"{item['activity_label']}: {item['ctx_a']} {begun}")
    endings = [without_marks(ending) for ending in item["endings"]]
    if not parity:
        prefix, endings = prefix.strip(), [" " + ending.strip() for ending in endings]
    return Question(prefix, endings, "", int(item["label"]))


def winogrande(item, parity):
    gap = item["sentence"].index("_")
    prefix, suffix = item["sentence"][:gap], item["sentence"][gap + 1 :]
    options = [item["option1"], item["option2"]]
    if parity:
        suffix = suffix.strip()
    elif prefix != prefix.rstrip():
        prefix, options = prefix.rstrip(), [" " + option for option in options]
    return Question(prefix, options, suffix, int(item["answer"]) - 1)


def siqa(item, parity):
    prefix = f"Question: {item['context']} {item['question']}\nAnswer:"
    answers = [item["answerA"], item["answerB"], item["answerC"]]
    gold = "ABC".index(item["correct"]) if "correct" in item else int(item["label"]) - 1
    if parity:
        return Question(prefix + " ", answers, "", gold)
    return Question(prefix, [" " + answer for answer in answers], "", gold)


def piqa(item, parity):
    prefix = f"Question: {item['goal']}\nAnswer:" + (" " if parity else "")
    return Question(prefix, [" " + item["sol1"], " " + item["sol2"]], "", int(item["label"]))


READERS = {"hellaswag": hellaswag, "winogrande": winogrande, "siqa": siqa, "piqa": piqa}


# ---------------------------------------------------------------- scores from the definitions


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
        if mode != "parity" and (self.opens or not question.prefix):
            prefix = [self.first, *prefix]
        out = []
        for option, text in enumerate(question.options):
            clean = prefix + self.encode(text) + suffix
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


# ---------------------------------------------------------------- lacuna


def one_line(text):
    return " ".join(text.split())


def lacuna(args, work, name, lines, *words):
    """Runs lacuna eval on a file of `lines` and gives its items, by id."""
    source, target = work / f"{name}.jsonl", work / f"{name}.out"
    source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    command = [args.lacuna, "eval", *words, "--data", source, "--output", target, "--quiet", "--seed", args.seed]
    command += ["--model", args.model, "--mask-id", args.mask_id, "--shift"]
    command += ["--device", "cpu", "--threads", args.threads]
    command = [str(word) for word in command]
    what = f"lacuna eval {' '.join(words)}"
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{args.lacuna} does not start: {error.strerror}") from None
    if done.returncode != 0:
        reason = one_line(done.stderr)[-2000:] or "it says no reason"
        raise SystemExit(f"{what} failed with {done.returncode}: {reason}")
    try:
        items = [json.loads(line) for line in (target / "items.jsonl").read_text(encoding="utf-8").splitlines()]
        return {item["id"]: item for item in items}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{what}: items.jsonl is not as expected: {type(error).__name__}: {error}") from None


def field(what, items, number, *keys):
    """What lacuna says of item `number`, which counts from 0."""
    value = items.get(str(number + 1))
    try:
        for key in keys:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        raise SystemExit(f"{what}: items.jsonl has no {'.'.join(map(str, keys))} of item {number + 1}") from None
    return value


# ---------------------------------------------------------------- comparing


def apart(got, expected):
    """The relative difference of two numbers."""
    if not isinstance(got, (int, float)) or not math.isfinite(got):
        return math.inf
    largest = max(abs(got), abs(expected))
    return abs(got - expected) / largest if largest > 0 else 0.0


def near(scores):
    """Whether the two best scores are as good as equal."""
    first, second = sorted(scores)[:2]
    return apart(first, second) <= TOLERANCE


class Row:
    """A line of the table."""

    def __init__(self, name, mode):
        self.name, self.mode = name, mode
        self.items, self.worst, self.same, self.wrong = [], 0.0, None, 0

    def fault(self, words):
        self.wrong += 1
        say(f"WRONG {self.name}, {self.mode}, {words}")

    def compare(self, number, got, expected):
        """Scores of item `number` from both sides."""
        if len(got) != len(expected):
            where = f"{self.name}, {self.mode}, item {number + 1}"
            raise SystemExit(f"{where}: {len(got)} scores, expected {len(expected)}")
        self.items.append({"item": number + 1, "lacuna": got, "reference": expected})
        for place, (a, b) in enumerate(zip(got, expected)):
            error = apart(a, b)
            self.worst = max(self.worst, error)
            if error > TOLERANCE:
                self.fault(f"item {number + 1}, score {place + 1}: {a}, expected {b:.8g}: {error:.1e} apart")

    def choice(self, number, chosen, scores):
        """The option that lacuna chose, and the scores that it should have chosen by."""
        best = min(range(len(scores)), key=scores.__getitem__)
        self.same = (self.same or 0) + (chosen == best)
        self.items[-1] |= {"chosen": chosen, "best": best}
        if chosen != best and not near(scores):
            self.fault(f"item {number + 1}: option {chosen} chosen, expected {best}")
        elif chosen != best:
            say(f"note: {self.name}, {self.mode}, item {number + 1}: the two best scores are as good as equal")

    def markdown(self):
        same = "" if self.same is None else f"{self.same} of {len(self.items)}"
        return f"| {self.name} | {self.mode} | {len(self.items)} | {self.worst:.1e} | {same} |"

    def numbers(self):
        worst = self.worst if math.isfinite(self.worst) else None
        out = {"format": self.name, "mode": self.mode, "items": len(self.items), "largest_difference": worst}
        return out | {"same_choices": self.same, "faults": self.wrong, "scores": self.items}


def compare_choice(args, work, reference, name, mode):
    row, lines = Row(name, mode), QUESTIONS[name]
    levels = [] if mode == "ar" else ["--levels", str(args.levels)]
    items = lacuna(args, work, f"{name}-{mode}", lines, "mc", "--format", name, *CHOICE_MODES[mode], *levels)
    if len(items) != len(lines):
        row.fault(f"{len(items)} items, expected {len(lines)}")
    for number, line in enumerate(lines):
        question = READERS[name](line, mode == "parity")
        scores = reference.scores(mode, number, question)
        what = f"lacuna eval mc, {name}, {mode}"
        row.compare(number, field(what, items, number, "scores"), scores)
        row.choice(number, field(what, items, number, "chosen"), scores)
        if field(what, items, number, "gold") != question.gold:
            row.fault(f"item {number + 1}: the right option is {question.gold}")
    return row


def compare_texts(args, work, reference, kind):
    row, sequences = Row("texts", f"nelbo {kind}"), reference.sequences()
    words = ["nelbo", *TEXT_MODES[kind], "--length", str(TEXT_LENGTH)]
    words += [] if kind == "ar" else ["--draws", str(args.levels)]
    items = lacuna(args, work, f"texts-{kind}", [{"text": text} for text in TEXTS], *words)
    if len(items) != len(sequences):
        row.fault(f"{len(items)} sequences, expected {len(sequences)}")
    for number, clean in enumerate(sequences):
        what = f"lacuna eval nelbo, {kind}"
        nats, tokens = (field(what, items, number, "metrics", "nats/token", i) for i in (0, 1))
        if tokens != len(clean) - 1:
            row.fault(f"sequence {number + 1}: {tokens} tokens, expected {len(clean) - 1}")
        row.compare(number, [nats / tokens if tokens else math.nan], [reference.bound(kind, number, clean)])
    return row


# ---------------------------------------------------------------- main


def modes(text):
    wanted = text.split(",")
    for mode in wanted:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r}: expected some of {','.join(MODES)}")
    return [mode for mode in MODES if mode in wanted]


def whole(least, most):
    """A parser of one whole number."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} to {most}")
        return value

    return parse


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--model", metavar="DIR", help="a model as a Hugging Face folder (default: target/smollm2)")
    p.add_argument("--mask-id", type=whole(0, 2**31 - 1), default=0, metavar="ID",
                   help="token used as the mask (default 0)")  # fmt: skip
    p.add_argument("--only", type=modes, default=MODES, metavar="MODES",
                   help=f"some of {','.join(MODES)} (default: all)")  # fmt: skip
    p.add_argument("--levels", type=whole(1, MOST_LEVELS), default=8, metavar="T",
                   help="masks of an option or text (default 8)")  # fmt: skip
    p.add_argument("--seed", type=whole(0, 2**64 - 1), default=2**32 + 7, metavar="N",
                   help="decides what is masked (default 4294967303: both words of the key are in use)")  # fmt: skip
    p.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help="threads of both (default 1)")
    p.add_argument("--json", metavar="FILE", help="all scores of both as one JSON object")
    p.add_argument("--lacuna", metavar="FILE", help="the binary (default: cargo's release build, brought up to date)")
    p.add_argument("--python", metavar="FILE", help="an interpreter that has torch and transformers")
    p.add_argument("--torch-index", metavar="URL", help="index that pip takes torch from when it sets up tools/.venv")
    p.add_argument("--found", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args()


def use_python(args):
    """Goes on in an interpreter that has the packages."""
    if args.found:
        return
    try:
        python = find_python(args.python, args.torch_index)
    except SystemExit as error:
        if args.python:
            raise
        reason = one_line(str(error)).split(". ")[0]
        packages = " ".join(f"'{package}'" if ">" in package else package for package in PACKAGES)
        raise SystemExit(f"{reason}; pip install {packages}, and name that Python with --python") from None
    if python != sys.executable:
        os.execvp(python, [python, __file__, *sys.argv[1:], "--found"])


def load_reference(args):
    try:
        return Reference(args.model, args.levels, args.seed, args.mask_id, args.threads)
    except ImportError as error:
        packages = ", ".join(PACKAGES)
        raise SystemExit(f"{one_line(str(error))}; install {packages}, or name a Python with --python") from None
    except Exception as error:  # those of three libraries, which are of many kinds
        raise SystemExit(f"{args.model}: transformers does not load it: {one_line(str(error))[:500]}") from None


def version(binary):
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "lacuna"
    except OSError as error:
        raise SystemExit(f"--lacuna {binary}: it does not start: {error.strerror}") from None


def measure(args):
    """Compares; the exit code."""
    check_philox()
    args.model = find_model(args.model or os.path.relpath(MODEL), False, None)
    if args.lacuna:
        find_lacuna(args.lacuna)
    use_python(args)
    if args.json:
        try:
            open(args.json, "a", encoding="utf-8").close()
        except OSError as error:
            raise SystemExit(f"--json {args.json}: cannot be written: {error.strerror}") from None
    args.lacuna = os.path.abspath(find_lacuna(args.lacuna))
    program = version(args.lacuna)
    reference = load_reference(args)
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        jobs = [(name, mode) for name in QUESTIONS for mode in args.only if mode != "nelbo"]
        for name, mode in jobs:
            say(f"{name}, {mode}")
            rows.append(compare_choice(args, work, reference, name, mode))
        for kind in TEXT_MODES if "nelbo" in args.only else []:
            say(f"texts, nelbo {kind}")
            rows.append(compare_texts(args, work, reference, kind))
    model = Path(args.model).resolve().name
    about = {"model": model, "levels": args.levels, "seed": args.seed, "mask_id": args.mask_id, "program": program}
    about |= {"torch": reference.torch.__version__, "transformers": transformers.__version__, "tolerance": TOLERANCE}
    print(f"{program} and PyTorch {about['torch']}, transformers {about['transformers']}, f32 on the CPU: {model}, "
          f"T = {args.levels}, seed {args.seed}, mask token {args.mask_id}\n")  # fmt: skip
    print("| format | mode | items | largest relative difference of a score | same choices |")
    print("|---|---|---:|---:|---:|")
    for row in rows:
        print(row.markdown())
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(about | {"rows": [row.numbers() for row in rows]}, file, indent=1)
            file.write("\n")
    wrong = sum(row.wrong for row in rows)
    say(f"{wrong} things differ" if wrong else f"all scores agree within {TOLERANCE:g}")
    return int(wrong > 0)


def main():
    args = arguments()
    try:
        return measure(args)
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
