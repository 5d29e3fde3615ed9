"""What the parts of tools/gpu_check.sh share: their flags, lines of JSON, times, and the binary.

Times on a card are taken as `lacuna bench kernels` takes them: three runs that do not count, then at least 20, each between
two events, with 256 MiB overwritten before it, so that inputs come from memory and the cost of starting an operation
is hidden behind the write.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from tables import bench_line

FLUSH = 1 << 28
WARM_UP = 3
LEAST_RUNS = 20
MOST_RUNS = 100
ENOUGH_US = 20_000.0


def arguments(description, **more):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", required=True, help="the file of JSON lines to write")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin nothing new after so long (default 120)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU: whether it runs, not how fast")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


class Lines:
    """A file of JSON lines, each on disk as soon as it is written."""

    def __init__(self, path, part):
        self.file = open(path, "a", encoding="utf-8")
        self.part = part

    def write(self, **fields):
        self.file.write(json.dumps({"part": self.part, **fields}) + "\n")
        self.file.flush()


class Clock:
    """The time that a part has."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


def brief(error):
    """The first line of an error's text, of a length that fits in a table."""
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


class Machine:
    """Where PyTorch computes: the card, or the CPU with --tiny."""

    def __init__(self, tiny):
        import torch

        self.torch = torch
        self.cuda = not tiny
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no card")
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.name = torch.cuda.get_device_name() if self.cuda else "cpu"
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self.flush = torch.empty(FLUSH if self.cuda else 1, dtype=torch.uint8, device=self.device)

    def dtype(self, name):
        return {"f32": self.torch.float32, "bf16": self.torch.bfloat16}[name]

    def synchronize(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def forget(self):
        """Gives memory that is no longer used back to the card."""
        if self.cuda:
            self.torch.cuda.empty_cache()

    def seconds(self, work):
        """Of one call, by the host's clock."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def microseconds(self, work):
        """Of each of 20 to 100 calls, by the card's clock."""
        for _ in range(WARM_UP):
            work()
        self.synchronize()
        times, spent = [], 0.0
        while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and spent < ENOUGH_US):
            self.flush.fill_(len(times))
            if self.cuda:
                begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                work()
                end.record()
                end.synchronize()
                spent += begin.elapsed_time(end) * 1e3
                times.append(begin.elapsed_time(end) * 1e3)
            else:
                times.append(self.seconds(work) * 1e6)
                spent += times[-1]
        return times


def summary(times):
    return {"median_us": statistics.median(times), "min_us": min(times), "runs": len(times)}


def run_lacuna(binary, arguments, seconds):
    """The JSON lines that the binary prints, and what went wrong, or None."""
    command = [binary, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [], f"not done after {seconds:.0f} s"
    except OSError as error:
        return [], brief(error)
    lines = []
    for line in done.stdout.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            lines.append(bench_line(found))
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return lines, f"exit code {done.returncode}: {(words or ['no message'])[0][:300]}"
    return lines, None if lines else "it printed no JSON"


def say(words):
    print(words, file=sys.stderr, flush=True)
