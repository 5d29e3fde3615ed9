#!/usr/bin/env python3
"""Copies golden vectors into tests/fixtures, without what only training needs.

A golden folder holds, for each tiny model, config.json, model.safetensors, cases.json and cases.safetensors
(and sometimes diffu/: the same weights under the diffusion wrapper's names). Gradients, optimiser states and
the indices that belong to them make up most of the cases; this leaves them out and copies the rest byte for
byte. Needs nothing but Python's standard library.

usage: trim_golden.py GOLDEN_DIR [OUT_DIR]        (OUT_DIR defaults to tests/fixtures/golden of this repository)
"""
import argparse
import json
import shutil
import struct
from pathlib import Path

DROPPED = ("grad/", "gradp/", "adamw/", "adamwp/", "probe/")
DROPPED_KINDS = ("adamw",)
DROPPED_FIELDS = ("grads", "grad_norm", "grad_norms")


def wanted(name: str) -> bool:
    return not name.startswith(DROPPED)


def trim_safetensors(source: Path, target: Path) -> None:
    """Rewrites `source` with the wanted tensors only, in the order in which they lie in the file."""
    data = source.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", None)
    body, kept, chunks, at = data[8 + size :], {}, [], 0
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if not wanted(name):
            continue
        begin, end = info["data_offsets"]
        kept[name] = {**info, "data_offsets": [at, at + end - begin]}
        chunks.append(body[begin:end])
        at += end - begin
    if metadata is not None:
        kept = {"__metadata__": metadata, **kept}
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def trim_json(source: Path, target: Path) -> None:
    cases = json.loads(source.read_text())
    cases["cases"] = [
        {k: v for k, v in case.items() if k not in DROPPED_FIELDS}
        for case in cases["cases"]
        if case["kind"] not in DROPPED_KINDS
    ]
    cases["tensors"] = [t for t in cases["tensors"] if wanted(t["name"])]
    target.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("golden", type=Path, help="folder that holds one folder a model")
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent / "tests/fixtures/golden"
    )
    args = parser.parse_args()
    folders = sorted(p.parent for p in args.golden.glob("*/cases.json"))
    if not folders:
        raise SystemExit(f"{args.golden}: expected folders that hold cases.json, found none")
    total = 0
    for folder in folders:
        out = args.out / folder.name
        out.mkdir(parents=True, exist_ok=True)
        trim_json(folder / "cases.json", out / "cases.json")
        trim_safetensors(folder / "cases.safetensors", out / "cases.safetensors")
        for part in (folder, folder / "diffu"):
            for name in ("config.json", "model.safetensors"):
                if (part / name).exists():
                    to = args.out / (part / name).relative_to(args.golden)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(part / name, to)
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        total += size
        print(f"{folder.name}: {size / 1e6:.2f} MB")
    print(f"{args.out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
