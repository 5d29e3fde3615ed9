#!/usr/bin/env python3
"""Copies a model folder with its float32 weights rounded to float16 (nearest, ties to even).

usage: to_f16.py FROM TO

Needs nothing but Python. FROM holds config.json, model.safetensors and tokenizer.json; a number that float16 cannot hold is an error.
The header is padded so that the data starts at a multiple of 64 bytes.
"""
import json
import os
import shutil
import struct
import sys


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    source, target = sys.argv[1:]
    with open(f"{source}/model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    metadata = header.pop("__metadata__", {})
    out, parts, at, worst = {"__metadata__": metadata}, [], 0, 0.0
    for name, t in sorted(header.items()):
        if t["dtype"] != "F32":
            sys.exit(f"{name}: expected F32, got {t['dtype']}")
        start, end = t["data_offsets"]
        count = (end - start) // 4
        numbers = struct.unpack(f"<{count}f", data[start:end])
        try:
            half = struct.pack(f"<{count}e", *numbers)
        except OverflowError:
            sys.exit(f"{name}: holds a number that float16 cannot")
        worst = max(worst, max(abs(a - b) for a, b in zip(numbers, struct.unpack(f"<{count}e", half))))
        out[name] = {"dtype": "F16", "shape": t["shape"], "data_offsets": [at, at + len(half)]}
        parts.append(half)
        at += len(half)
    raw = json.dumps(out, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    os.makedirs(target, exist_ok=True)
    with open(f"{target}/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        f.writelines(parts)
    with open(f"{source}/config.json") as f:
        config = json.load(f)
    config["torch_dtype"] = "float16"
    with open(f"{target}/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    shutil.copyfile(f"{source}/tokenizer.json", f"{target}/tokenizer.json")
    os.chmod(f"{target}/tokenizer.json", 0o644)
    print(f"{len(out) - 1} tensors, {at} bytes; largest rounding error {worst:.3g}")


if __name__ == "__main__":
    main()
