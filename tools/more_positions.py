#!/usr/bin/env python3
"""Copies a GPT-2 model folder with room for more positions; the rows that are new in the position embedding are zero.

usage: more_positions.py FROM TO N

Needs nothing but Python. FROM holds config.json, model.safetensors in float32 and tokenizer.json; the copy is to be trained
further, with --length up to N.
"""
import json
import os
import shutil
import struct
import sys

NAMES = ("wpe.weight", "transformer.wpe.weight")


def main():
    if len(sys.argv) != 4 or not sys.argv[3].isdecimal():
        sys.exit(__doc__)
    source, target, positions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(f"{source}/model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    out, parts, at, had = {"__metadata__": header.pop("__metadata__", {})}, [], 0, None
    for name, t in sorted(header.items()):
        start, end = t["data_offsets"]
        part, shape = data[start:end], t["shape"]
        if name.endswith(NAMES):
            if t["dtype"] != "F32" or positions < shape[0]:
                sys.exit(f"{name}: expected F32 of at most {positions} rows, got {t['dtype']} of {shape[0]}")
            had, shape = shape[0], [positions, shape[1]]
            part += bytes(4 * shape[1] * (positions - had))
        out[name] = {"dtype": t["dtype"], "shape": shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    if had is None:
        sys.exit(f"{source}: has no position embedding ({' or '.join(NAMES)})")
    raw = json.dumps(out, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    os.makedirs(target, exist_ok=True)
    with open(f"{target}/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        f.writelines(parts)
    with open(f"{source}/config.json") as f:
        config = json.load(f) | {"n_positions": positions}
    with open(f"{target}/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    shutil.copyfile(f"{source}/tokenizer.json", f"{target}/tokenizer.json")
    os.chmod(f"{target}/tokenizer.json", 0o644)
    print(f"{had} positions, now {positions}")


if __name__ == "__main__":
    main()
