"""Plays lacuna, or llama-diffusion-cli, for tests of tools/compare_torch.py: made-up times in the real programs' words.

STAND_IN_MODE: `old` has no bench kernels for the CPU, `flat` has a line for near-flat logits too, `slow` never ends a
training step.
"""

import json
import os
import sys
import time

words = sys.argv[1:]
mode = os.environ.get("STAND_IN_MODE", "")


def value(flag):
    return words[words.index(flag) + 1]


if "--verbose" in words:
    print("computing on cpu, 3 threads, stand-in", file=sys.stderr)
if "--diffusion-steps" in words:
    steps = int(value("--diffusion-steps"))
    assert value("-ub") == value("-c") and value("--diffusion-algorithm") == "0"
    print(f"\ntotal time: {100.0 * steps:.2f}ms, time per step: 100.00ms, sampling time per step: 9.00ms", file=sys.stderr)
    print("\nsome text")
elif words[:1] == ["--version"]:
    print("lacuna 9.9.9")
elif words[:2] == ["replay", "forward"]:
    print(json.dumps({"batch": 1, "length": 4, "vocab": 259, "seconds": 0.25}))
elif words[:1] == ["generate"]:
    length = int(value("--length"))
    line = {"canvas_ids": [1] * (length + 1), "tokens": length, "nfe": int(value("--steps")), "seconds": 0.5}
    print(json.dumps({**line, "tokens": length - 1} if mode == "short" else line))
elif words[:2] == ["bench", "train"]:
    if mode == "slow":
        print("begun", file=sys.stderr, flush=True)
        time.sleep(600)
    # As bench lines are: every run in "seconds", the middle one in "median_s".
    line = {"schema": 1, "bench": "train", "seconds": [2.0, 4.0], "median_s": 3.0, "masked": 16, "flops": 6e9}
    print(json.dumps({**line, "parameters": 435584, "device": "cpu, 3 threads, stand-in"}))
elif words[:2] == ["bench", "kernels"]:
    if mode == "old":
        print("error: bench kernels times a card's kernels", file=sys.stderr)
        sys.exit(2)
    line = {"schema": 1, "bench": "kernel", "stem": "unmask", "kernel": "unmask", "device": "cpu, 3 threads, stand-in"}
    print(json.dumps({**line, "shape": "greedy, rows 3, vocab 301", "median_us": 1.0}))
    print(json.dumps({**line, "shape": "top-p 0.9, rows 3, vocab 301", "median_us": 70.0}))
    if mode == "flat":
        print(json.dumps({**line, "shape": "top-p 0.9, rows 3, vocab 301, near-flat logits", "median_us": 90.0}))
else:
    sys.exit(f"stand-in: not known: {words}")
