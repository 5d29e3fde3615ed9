"""The side-by-sides: for each kind of work, turns of the two programs and a row of what came out."""

import json
import re
import statistics
import time
from pathlib import Path

from compare import interrupts, programs
from compare.lines import bench_line
from compare.setup import say

LACUNA, TORCH = "lacuna", "PyTorch"
# What a time is of where PyTorch alone is measured: the sizes of the paper's models.
SAMPLE_ROWS, SAMPLE_VOCAB = 128, 50257
UNMASK = re.compile(r"^top-p (?P<top_p>[0-9.]+), rows (?P<rows>\d+), vocab (?P<vocab>\d+)(?:, (?P<kind>[a-z-]+) logits)?$")


class Row:
    """One piece of work in both programs: `turns` has the answers of each, by program."""

    def __init__(self, part, words, turns, note=None):
        self.part, self.words, self.turns, self.note = part, words, turns, note
        self.lines = {}

    def seconds(self, who):
        return [turn["seconds"] for turn in self.turns[who]]

    def peak(self, who):
        return max((turn["peak_memory_bytes"] for turn in self.turns[who] if turn.get("peak_memory_bytes")), default=None)

    def both(self):
        return all(self.turns.get(who) for who in (LACUNA, TORCH))

    def ratio(self):
        """How many times as long PyTorch takes, by the medians; None where one is missing."""
        return statistics.median(self.seconds(TORCH)) / statistics.median(self.seconds(LACUNA)) if self.both() else None

    def memory_ratio(self):
        """lacuna's peak memory over PyTorch's; None where one is missing, and for a sampling step: `bench kernels` holds more."""
        if self.part == "sample":
            return None
        peaks = [self.peak(who) if self.turns.get(who) else None for who in (LACUNA, TORCH)]
        return peaks[0] / peaks[1] if all(peaks) else None


class Measurement:
    """All the work asked for, in order; rows and lines are there as soon as they are measured."""

    def __init__(self, args, lines, commit):
        self.args, self.lines, self.commit = args, lines, commit
        self.config = json.loads(Path(args.model, "config.json").read_text())
        self.model = Path(args.model).name
        self.rows, self.about, self.done, self.began = [], {}, 0, time.monotonic()
        self.work = []
        parts = {
            "forward": [(self.forward, (b, n)) for n in args.context for b in args.batch],
            "generate": [(self.generate, (steps,)) for steps in args.steps],
            "train": [(self.train, (share, how)) for share in args.masked for how in args.attention],
            "sample": [(self.sample, ())],
        }
        for part in args.only:
            self.work += parts[part]

    def run(self):
        for measure, what in self.work:
            self.done += 1
            measure(*what)

    # ------------------------------------------------------------ turns

    def turns(self, words, programs_by_who):
        """Answers of the programs, which take turns and take the first place in turn; Ctrl-C keeps whole turns."""
        answers = {who: [] for who in programs_by_who}
        order = list(programs_by_who)
        for turn in range(self.args.repeats):
            new = {}
            try:
                for who in order if turn % 2 == 0 else reversed(order):
                    with interrupts.allowed():
                        new[who] = programs_by_who[who]()
                    self.tell(words, turn, who, new[who]["seconds"])
            except KeyboardInterrupt:
                if turn == 0:
                    raise
                return answers, True
            for who, answer in new.items():
                answers[who].append(answer)
        return answers, False

    def tell(self, words, turn, who, seconds):
        elapsed = time.monotonic() - self.began
        say(
            f"[{self.done}/{len(self.work)}, {elapsed:.0f} s] {words}, turn {turn + 1} of {self.args.repeats}:"
            f" {who} {seconds:.4g} s"
        )

    def measure(self, part, words, kind, torch, own, attention="sdpa", note=None, **known):
        """Turns of both programs for one row, its lines, and the row; `torch` takes the process, `own` nothing."""
        process, sides = None, {}
        if torch and not self.args.lacuna_only:
            process = programs.TorchProcess(self.args, kind, attention)
            told = {key: process.about[key] for key in ("torch", "transformers", "imported_bytes")}
            self.about = {**told, **self.about}  # of the first process
            sides[TORCH] = lambda: torch(process)
        if own and not self.args.torch_only:
            sides[LACUNA] = own
        with interrupts.held():
            answers, stopped = self.turns(words, sides)
            row = Row(part, words, answers, note)
            for who, turns in answers.items():
                self.about.setdefault("optimizer", None)
                self.about["optimizer"] = turns[-1].get("optimizer") or self.about["optimizer"]
                row.lines[who] = self.lines.add(self.line(row, who, known, process))
            self.rows.append(row)
        if stopped:
            raise KeyboardInterrupt
        if process:
            process.close()
        return row

    def line(self, row, who, known, process):
        """The bench line of one program's turns."""
        last = row.turns[who][-1]
        bench = {"forward": "step", "generate": "generate", "train": "train", "sample": "kernel"}[row.part]
        of_model = {"model": None if row.part == "sample" else self.model, "shape": None}
        own = {
            "parameters": last.get("parameters") or (process.about["parameters"] if process else None),
            "device": last.get("device") or (process.about["device"] if process and who == TORCH else None),
            "dtype": "f32", "threads": self.args.threads, "gemm": None,
            "commit": self.commit if who == LACUNA else None,
            "version": self.about.get("torch") if who == TORCH else self.args.version,
            "peak_memory_bytes": row.peak(who),
        }  # fmt: skip
        for key in ("nfe", "tokens", "masked", "flops"):
            if last.get(key) is not None:
                own[key] = last[key]
        if row.part == "generate":
            own["nfe"] = statistics.mean(turn["nfe"] for turn in row.turns[who])
        # A name is of one program's work, so that a file has it once and two files can be compared.
        name = row.words if who == LACUNA else f"{row.words}, {who}"
        return bench_line(bench, who, name, row.seconds(who), **{**of_model, **known, **own})

    # ------------------------------------------------------------ the parts

    def forward(self, batch, length):
        vocab = self.config["vocab_size"]
        ids = [[(17 * i + 31 * b + 5) % vocab for i in range(length)] for b in range(batch)]
        inner = self.args.inner
        return self.measure(
            "forward",
            f"forward {self.model}, {batch} x {length}, all logits",
            "forward",
            lambda process: process.ask(x=ids, inner=inner),
            lambda: programs.forward(self.args, ids),
            batch=batch, length=length, tokens_raw=batch * length,
        )  # fmt: skip

    def generate(self, steps):
        args = self.args
        measured = min(steps, args.torch_steps or steps)
        asked = {"length": args.canvas, "steps": steps, "measured": measured, "top_p": args.top_p}
        scaled = f"PyTorch: {measured} of {steps} steps measured, scaled linearly" if measured < steps else None
        return self.measure(
            "generate",
            f"generate {self.model}, 1 x {args.canvas}, T = {steps}, random",
            "generate",
            lambda process: process.ask(**asked),
            lambda: programs.generate(args, steps),
            note=scaled, batch=1, length=args.canvas, steps=steps, order="random", top_p=args.top_p,
            tokens=args.canvas - 1, tokens_raw=args.canvas - 1,
        )  # fmt: skip

    def train(self, share, attention):
        args = self.args
        batch, length = args.train_batch, args.train_length
        asked = {"batch": batch, "length": length, "share": share, "steps": args.train_steps, "warmup": args.train_warmup}
        eager = "" if attention == "sdpa" else f", {attention} attention"
        return self.measure(
            "train",
            f"train {self.model}, {batch} x {length}, {100 * share:g} % masked{eager}",
            "train",
            lambda process: process.ask(**asked),
            lambda: programs.train(args, share),
            attention=attention, batch=batch, length=length, masked=round(share * length) * batch,
            tokens=batch * length, tokens_raw=batch * length,
        )  # fmt: skip

    def sample(self):
        """Drawing tokens from rows of logits: the shapes are those that `bench kernels` has."""
        found, why = ([], "") if self.args.torch_only else self.unmask_lines()
        if not found and self.args.lacuna_only:
            say(f"sampling step: left out: {why}")
            return
        if why:
            say(f"sampling step: {why}; PyTorch is measured alone")
        if not found:
            rows, vocab = (4, 301) if self.args.quick else (SAMPLE_ROWS, SAMPLE_VOCAB)
            found = [(self.args.top_p, rows, vocab, kind) for kind in ("peaked", "near-flat")]
        own = None if why or self.args.torch_only else self.own_sample
        missing = {"peaked", "near-flat"} - {kind for *_, kind in found}
        if missing:
            say(f"sampling step: bench kernels has no line with {', '.join(missing)} logits: that row is left out")
        inner = self.args.inner
        for top_p, rows, vocab, kind in found:
            shape = f"top-p {top_p:g}, rows {rows}, vocab {vocab}"
            self.measure(
                "sample",
                f"sample, {shape}, {kind} logits",
                "sample",
                lambda process, w=(rows, vocab, top_p, kind): process.ask(
                    rows=w[0], vocab=w[1], top_p=w[2], logits=w[3], inner=inner
                ),
                own and (lambda w=(top_p, rows, vocab, kind): own(w)),
                stem="unmask", kernel="unmask", shape=f"{shape}, {kind} logits", top_p=top_p, batch=rows, tokens_raw=rows,
                bytes=4 * rows * vocab,
            )  # fmt: skip

    def unmask_lines(self):
        """What the binary has to measure, as (top_p, rows, vocab, kind of logits); none, and why not."""
        done, why = programs.kernels(self.args)
        if done is None:
            return [], f"this binary does not time drawing tokens on the CPU ({why})"
        found = list(unmask_times(done.objects()))
        wanted = [w for w in found if self.args.quick or w[1:3] == (SAMPLE_ROWS, SAMPLE_VOCAB)]
        if not wanted:
            return [], f"bench kernels has no line of top-p, rows {SAMPLE_ROWS}, vocab {SAMPLE_VOCAB}"
        return wanted, ""

    def own_sample(self, what):
        """Seconds of one shape by a run of the binary, which times it several times."""
        done, why = programs.kernels(self.args)
        if done is None:
            raise SystemExit(f"bench kernels worked once, then: {why}")
        seconds, device = unmask_times(done.objects())[what]
        return {"seconds": seconds, "peak_memory_bytes": done.peak, "device": device}


def unmask_times(lines):
    """Median seconds and device of every line of `bench kernels` that draws by top-p: {(top_p, rows, vocab, kind): ...}.

    A shape that does not name its logits has those of a model with an opinion: peaked. Weights of several formats give
    one line each; drawing does not depend on them, so that the first is taken.
    """
    times = {}
    for line in lines:
        words = UNMASK.match(line.get("shape") or "") if line.get("bench") == "kernel" else None
        if words and "unmask" in (line.get("stem"), *[line.get("kernel", "")[:6]]):
            what = (float(words["top_p"]), int(words["rows"]), int(words["vocab"]), words["kind"] or "peaked")
            times.setdefault(what, (line["median_us"] / 1e6, line.get("device")))
    return times
