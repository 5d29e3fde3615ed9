"""The launches and sizes that are timed, as in src/measure/grid.rs: tests/gpu_check.rs compares the two lists.

Run by itself it prints them, one JSON object a line (--tiny: the small ones).
"""

import json
import sys


def attention(batch, heads, length, width):
    words = f"batch {batch}, heads {heads}, length {length}, width {width}"
    sizes = {"batch": batch, "heads": heads, "length": length, "width": width}
    return {"stem": "attention", "shape": words, "flops": 4 * batch * heads * length**2 * width, **sizes}


def linear(rows, inputs, outputs, layout):
    words = f"rows {rows}, {inputs} to {outputs}, weight [{layout}]"
    sizes = {"rows": rows, "inputs": inputs, "outputs": outputs, "layout": layout}
    return {"stem": "matmul", "shape": words, "flops": 2 * rows * inputs * outputs, **sizes}


def unmask(dtype, rule, rows, vocab):
    words = f"{rule}, rows {rows}, vocab {vocab}"
    return {"stem": "unmask", "shape": words, "dtype": dtype, "rule": rule, "rows": rows, "vocab": vocab}


def norm(kind, rows, width, residual):
    words = f"{kind}{' with residual' if residual else ''}, rows {rows}, width {width}"
    return {"stem": "norm", "shape": words, "kind": kind, "rows": rows, "width": width, "residual": residual}


def rope(rows, heads, width):
    words = f"rows {rows}, heads {heads}, width {width}"
    return {"stem": "rope", "shape": words, "rows": rows, "heads": heads, "width": width}


def activation(kind, rows, width):
    return {"stem": "activation", "shape": f"{kind}, rows {rows}, width {width}", "kind": kind, "rows": rows, "width": width}


def embed(rows, width, vocab, positions):
    words = f"rows {rows}, width {width}, vocab {vocab}{', with positions' if positions else ''}"
    return {"stem": "embedding", "shape": words, "rows": rows, "width": width, "vocab": vocab, "positions": positions}


def head(dtype, rows, vocab):
    return {"stem": "head", "shape": f"rows {rows}, vocab {vocab}", "dtype": dtype, "rows": rows, "vocab": vocab}


def cast(dtype, to, count):
    return {"stem": "cast", "shape": f"to {to}, {count} numbers", "dtype": dtype, "to": to, "count": count}


def large():
    cases = []
    for width in (64, 128):
        for length in (512, 1024, 2048):
            for batch in (1, 16384 // length):
                cases.append(attention(batch, 2048 // width, length, width))
    for rows in (1024, 8192):
        for width, hidden in ((768, 3072), (1024, 4096)):
            for inputs, outputs in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
                cases.append(linear(rows, inputs, outputs, "in, out"))
        for inputs, outputs in ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096)):
            cases.append(linear(rows, inputs, outputs, "out, in"))
    for rows in (8, 512):
        for inputs, outputs in ((768, 50257), (1024, 50258), (4096, 32000)):
            cases.append(linear(rows, inputs, outputs, "out, in"))
    for dtype, rows, vocab in (("f32", 512, 50257), ("f32", 512, 32000), ("bf16", 512, 50257), ("f32", 8, 50257)):
        for rule in ("top-p 0.9", "top-k 40", "sampled", "greedy"):
            cases.append(unmask(dtype, rule, rows, vocab))
    for rows in (1024, 8192):
        for kind, width in (("LayerNorm", 768), ("LayerNorm", 1024), ("RMSNorm", 4096)):
            for residual in (False, True):
                cases.append(norm(kind, rows, width, residual))
        cases.append(rope(rows, 32, 128))
        cases.append(activation("SwiGLU", rows, 11008))
        cases.append(activation("GELU", rows, 3072))
        cases.append(embed(rows, 768, 50257, True))
        cases.append(embed(rows, 4096, 32000, False))
    cases.append(head("f32", 1024, 50257))
    cases.append(head("bf16", 1024, 32000))
    cases.append(cast("f32", "bf16", 1 << 25))
    cases.append(cast("bf16", "f32", 1 << 25))
    return cases


def small():
    return [
        attention(2, 2, 24, 64),
        attention(1, 1, 24, 128),
        linear(24, 64, 96, "in, out"),
        linear(8, 64, 101, "out, in"),
        unmask("f32", "top-p 0.9", 3, 301),
        unmask("f32", "top-k 40", 3, 301),
        unmask("bf16", "sampled", 3, 301),
        unmask("f32", "greedy", 3, 301),
        norm("LayerNorm", 3, 96, False),
        norm("RMSNorm", 3, 96, True),
        rope(3, 2, 64),
        activation("SwiGLU", 3, 96),
        activation("GELU", 3, 96),
        embed(5, 96, 50, True),
        embed(5, 96, 50, False),
        head("f32", 3, 301),
        cast("f32", "bf16", 1000),
        cast("bf16", "f32", 1000),
    ]


def cases(tiny):
    return [{"dtype": "bf16", **case} for case in (small() if tiny else large())]


if __name__ == "__main__":
    for case in cases("--tiny" in sys.argv[1:]):
        print(json.dumps({key: case[key] for key in ("stem", "dtype", "shape")}))
