"""The launches and sizes that are timed, as in src/profile/grid.rs and src/profile/training.rs: tests/gpu_check.rs compares
the two lists.

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


# ---------------------------------------------------------------- what only training asks for; `way` names PyTorch's


def attention_backward(batch, heads, length, width):
    forward = attention(batch, heads, length, width)
    # Five products of the forward's two: the scores again, and two gradients a product.
    return {**forward, "stem": "attention_bwd", "way": "attention_backward", "flops": forward["flops"] * 5 // 2}


def masked_loss(rows, masked, width, vocab):
    words = f"masked loss, {masked} of {rows} rows, width {width}, vocab {vocab}"
    sizes = {"rows": rows, "masked": masked, "width": width, "vocab": vocab}
    return {"stem": "head", "way": "masked_loss", "shape": words, "flops": 6 * masked * width * vocab, **sizes}


def weight_gradient(rows, inputs, outputs, layout):
    product = linear(rows, inputs, outputs, layout)
    return {**product, "way": "weight_gradient", "shape": f"weight gradient, {product['shape']}"}


def norm_backward(kind, rows, width):
    return {**norm(kind, rows, width, False), "way": "norm_backward", "shape": f"gradients of {kind}, rows {rows}, width {width}"}


def adamw(count, moments):
    words = f"AdamW, {count} numbers, moments {moments}"
    return {"stem": "optim", "way": "adamw", "shape": words, "count": count, "moments": moments}


# ---------------------------------------------------------------- the lists


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


def large_training():
    cases = []
    for heads, width in ((12, 64), (32, 128)):
        for length in (512, 1024, 2048):
            cases.append(attention_backward(16384 // length, heads, length, width))
    for width, vocab in ((768, 50257), (4096, 32000)):
        for share in (15, 50, 100):
            cases.append(masked_loss(16384, (16384 * share + 50) // 100, width, vocab))
    for width in (768, 1024):
        for inputs, outputs in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
            cases.append(weight_gradient(16384, inputs, outputs, "in, out"))
    for kind, width in (("LayerNorm", 768), ("LayerNorm", 1024), ("RMSNorm", 4096)):
        cases.append(norm_backward(kind, 16384, width))
    for moments in ("f32", "bf16", "8bit"):
        cases.append(adamw(124_000_000, moments))
    return cases


def small_training():
    return [
        attention_backward(2, 2, 24, 64),
        attention_backward(1, 1, 24, 128),
        masked_loss(9, 5, 64, 101),
        weight_gradient(24, 64, 96, "in, out"),
        weight_gradient(8, 64, 101, "out, in"),
        norm_backward("LayerNorm", 5, 96),
        norm_backward("RMSNorm", 5, 96),
        adamw(1000, "f32"),
        adamw(1000, "bf16"),
        adamw(1000, "8bit"),
    ]


def cases(tiny):
    return [{"dtype": "bf16", **case} for case in (small() if tiny else large())]


def training_cases(tiny):
    return [{"dtype": "bf16", **case} for case in (small_training() if tiny else large_training())]


if __name__ == "__main__":
    tiny = "--tiny" in sys.argv[1:]
    for case in cases(tiny) + training_cases(tiny):
        print(json.dumps({key: case[key] for key in ("stem", "dtype", "shape")}))
