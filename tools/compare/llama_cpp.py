"""llama.cpp's diffusion example (llama-diffusion-cli) beside the same generation in lacuna, where there is a binary.

It is asked for what the paper's loop does, as near as it goes: --diffusion-algorithm 0 (random order), the timestep
schedule (--diffusion-eps 0.001), T steps, temperature 1, top-p; -ub is the length of the canvas, the prompt included. What
differs is said with the row: it loads Dream, LLaDA or RND1 from GGUF in the format of that file, puts the prompt into the
model's chat template, draws only the rows that it commits, and rounds the number of these down at every step.
"""

import os
import re
import struct

from compare import interrupts, programs
from compare.lines import bench_line
from compare.measure import LACUNA, Row

WHO = "llama.cpp"
PROMPT = "The"
TIMING = re.compile(r"total time: ([\d.]+)ms, time per step: ([\d.]+)ms(?:, sampling time per step: ([\d.]+)ms)?")
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FORMATS = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 14: "q4_K_S", 15: "q4_K_M", 16: "q5_K_S",
           17: "q5_K_M", 18: "q6_K", 32: "bf16"}  # fmt: skip


def timing(text):
    """Seconds in all, a step, and a step of drawing (None where it is not told), from what the program prints."""
    found = TIMING.findall(text)
    if not found:
        raise SystemExit(
            "llama-diffusion-cli printed no 'total time: ...ms, time per step: ...ms': is it examples/diffusion of a llama.cpp"
            f" from July 2025 or later, and the model one that it knows? It said: {text.strip()[-500:]!r}"
        )
    total, step, drawing = found[-1]
    return float(total) / 1000, float(step) / 1000, float(drawing) / 1000 if drawing else None


def gguf_facts(path):
    """Metadata of a GGUF file, arrays as their length."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise SystemExit(f"--llama-model {path}: {error.strerror}") from None
    with file:
        size = os.fstat(file.fileno()).st_size

        def take(form):
            data = file.read(struct.calcsize("<" + form))
            return struct.unpack("<" + form, data)[0]

        def text():
            length = take("Q")
            if length > size:
                raise ValueError("a string longer than the file")
            data = file.read(length)
            if len(data) < length:
                raise ValueError("it ends early")
            return data.decode("utf-8", "replace")

        def value(kind):
            if kind in FIXED:
                return take(FIXED[kind])
            if kind == 8:
                return text()
            if kind != 9:
                raise ValueError(f"a value of type {kind}")
            of, length = take("I"), take("Q")
            if length > size:
                raise ValueError("an array longer than the file")
            if of in FIXED:
                file.seek(length * struct.calcsize("<" + FIXED[of]), os.SEEK_CUR)
            else:
                for _ in range(length):
                    value(of)
            return length

        try:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, _, count = take("I"), take("Q"), take("Q")
            if version not in (2, 3):
                raise ValueError(f"version {version}: expected 2 or 3")
            facts = {}
            for _ in range(count):
                key = text()
                facts[key] = value(take("I"))
            if file.tell() > size:
                raise ValueError("it ends early")
            return facts
        except (ValueError, struct.error) as error:
            raise SystemExit(f"--llama-model {path}: not a GGUF file that can be read: {error}") from None


def shape(facts):
    """Layers, width, inner width, heads, key heads and vocabulary of a GGUF file, and its number format."""
    arch = facts.get("general.architecture", "?")
    heads = facts.get(f"{arch}.attention.head_count")
    numbers = (
        facts.get(f"{arch}.block_count"), facts.get(f"{arch}.embedding_length"), facts.get(f"{arch}.feed_forward_length"),
        heads, facts.get(f"{arch}.attention.head_count_kv", heads),
        facts.get(f"{arch}.vocab_size", facts.get("tokenizer.ggml.tokens")),
    )  # fmt: skip
    kind = facts.get("general.file_type")
    return arch, numbers, FORMATS.get(kind, f"file type {kind}")


def shape_of_config(config):
    heads = config["num_attention_heads"]
    return (
        config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], heads,
        config.get("num_key_value_heads", heads), config["vocab_size"],
    )  # fmt: skip


def command(args, steps):
    """llama-diffusion-cli with the flags of the same work."""
    canvas = str(args.canvas)
    flags = ["-m", args.llama_model, "-p", PROMPT, "-ub", canvas, "-b", canvas, "-c", canvas, "-t", args.threads, "-tb", args.threads]
    flags += ["--diffusion-steps", steps, "--diffusion-eps", "0.001", "--diffusion-algorithm", "0"]
    flags += ["--temp", "1", "--top-k", "0", "--top-p", args.top_p, "-s", "1"]
    return [args.llama_diffusion, *map(str, flags)]


def measure(measurement):
    """A row for each number of steps, with its lines, after all others."""
    args = measurement.args
    arch, numbers, kind = shape(gguf_facts(args.llama_model))
    same = numbers == shape_of_config(measurement.config)
    name = os.path.basename(args.llama_model)
    for steps in args.steps:

        def one():
            done = programs.run(command(args, steps))
            seconds, _, drawing = timing(done.errors + done.output)
            return {"seconds": seconds, "drawing": drawing, "peak_memory_bytes": done.peak, "nfe": steps}

        words = f"generate, 1 x {args.canvas}, T = {steps}, random"
        sides = {WHO: one}
        if same and not args.torch_only:
            sides[LACUNA] = lambda: programs.generate(args, steps)
        with interrupts.held():
            turns, stopped = measurement.turns(words, sides)
            note = f"{name}: {arch}, {kind}; "
            note += "the shape of lacuna's model" if same else f"another shape than lacuna's model: {numbers}"
            row = Row("llama.cpp", words, turns, note)
            known = {
                "model": name, "shape": None, "device": f"cpu, {args.threads} threads", "dtype": kind, "threads": args.threads,
                "batch": 1, "length": args.canvas, "steps": steps, "order": "random", "top_p": args.top_p, "nfe": steps,
                "peak_memory_bytes": row.peak(WHO),
            }  # fmt: skip
            # The tokens of the prompt are not told, so that there is no rate of tokens.
            line = bench_line("generate", WHO, f"{words}, {WHO}, {name}", row.seconds(WHO), **known)
            row.lines[WHO] = measurement.lines.add(line)
            measurement.rows.append(row)
        if stopped:
            raise KeyboardInterrupt
