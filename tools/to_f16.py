#!/usr/bin/env python3
"""Copies a model folder with its float32 weights rounded to float16 (nearest, ties to even).

usage: to_f16.py FROM TO

Needs nothing but Python. FROM holds config.json, model.safetensors and tokenizer.json; a number that float16 cannot hold is an error.
The header is padded so that the data starts at a multiple of 64 bytes.
"""
import struct
import sys

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from experiment.folder import copy, tensors


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    source, target = sys.argv[1:]
    metadata, found = tensors(source)
    out, worst = [], 0.0
    for name, dtype, shape, part in found:
        if dtype != "F32":
            sys.exit(f"{name}: expected F32, got {dtype}")
        count = len(part) // 4
        numbers = struct.unpack(f"<{count}f", part)
        try:
            half = struct.pack(f"<{count}e", *numbers)
        except OverflowError:
            sys.exit(f"{name}: holds a number that float16 cannot")
        worst = max(worst, max(abs(a - b) for a, b in zip(numbers, struct.unpack(f"<{count}e", half))))
        out.append((name, "F16", shape, half))
    copy(source, target, metadata, out, {"torch_dtype": "float16"})
    print(f"{len(out)} tensors, {sum(len(half) for *_, half in out)} bytes; largest rounding error {worst:.3g}")


if __name__ == "__main__":
    main()
