#!/usr/bin/env python3
"""Copies a GPT-2 model folder with room for more positions; the rows that are new in the position embedding are zero.

usage: more_positions.py FROM TO N

Needs nothing but Python. FROM holds config.json, model.safetensors in float32 and tokenizer.json; the copy is to be trained
further, with --length up to N.
"""
import sys

sys.dont_write_bytecode = True  # the tools leave nothing beside them
from experiment.folder import copy, tensors

NAMES = ("wpe.weight", "transformer.wpe.weight")


def main():
    if len(sys.argv) != 4 or not sys.argv[3].isdecimal():
        sys.exit(__doc__)
    source, target, positions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    metadata, found = tensors(source)
    had = None
    for i, (name, dtype, shape, part) in enumerate(found):
        if name in NAMES:
            had, width = shape
            if dtype != "F32" or positions < had:
                sys.exit(f"{name}: expected F32 of at most {positions} rows, got {dtype} of {had}")
            found[i] = (name, dtype, [positions, width], part + bytes(4 * width * (positions - had)))
    if had is None:
        sys.exit(f"{source}: has no position embedding ({' or '.join(NAMES)})")
    copy(source, target, metadata, found, {"n_positions": positions})
    print(f"{had} positions, now {positions}")


if __name__ == "__main__":
    main()
