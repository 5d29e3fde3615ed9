"""Model folders, read and written with nothing but Python: config.json, model.safetensors, tokenizer.json."""

import json
import os
import shutil
import struct


def tensors(folder):
    """Metadata, and (name, dtype, shape, bytes) of each tensor in order of name."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not os.path.isfile(f"{folder}/{name}"):
            raise SystemExit(f"{folder}: expected a model folder, found no {name}")
    with open(f"{folder}/model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    metadata = header.pop("__metadata__", {})
    return metadata, [
        (name, t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in sorted(header.items())
    ]


def copy(source, target, metadata, found, changes):
    """Writes a folder with these tensors and the source's tokenizer and configuration, some of whose keys change.

    The header is padded so that the data starts at a multiple of 64 bytes.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise SystemExit(f"{target}: the copy needs a folder of its own")
    header, at = {"__metadata__": metadata}, 0
    for name, dtype, shape, part in found:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(part)]}
        at += len(part)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    os.makedirs(target, exist_ok=True)
    with open(f"{target}/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        f.writelines(part for *_, part in found)
    with open(f"{source}/config.json") as f:
        config = json.load(f) | changes
    with open(f"{target}/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    shutil.copyfile(f"{source}/tokenizer.json", f"{target}/tokenizer.json")
    os.chmod(f"{target}/tokenizer.json", 0o644)
