"""Measurements in the form of `lacuna bench --json`: one JSON object a line, written as they come."""

import json
import math
import statistics


def spread(seconds):
    """The interquartile range over the median; 0 for a single run."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle if middle > 0 else 0.0


def bench_line(bench, who, name, seconds, **known):
    """A line of the schema from the seconds of every run and what else is known; None is left in, as null."""
    middle = statistics.median(seconds)
    if not all(math.isfinite(s) and s > 0 for s in seconds):
        raise SystemExit(f"{name}: {who} gave times of {seconds}: expected numbers above 0")
    line = {"schema": 1, "bench": bench, "who": who, "name": name, **known}
    line |= {"runs": len(seconds), "median_s": middle, "min_s": min(seconds), "max_s": max(seconds)}
    line |= {"spread": spread(seconds), "seconds": list(seconds)}
    for count, rate in (("tokens", "tokens_per_s"), ("tokens_raw", "tokens_raw_per_s"), ("flops", "flops_per_s")):
        if line.get(count) is not None:
            line[rate] = line[count] / middle
    if line.get("nfe"):
        line["ms_per_step"] = 1000 * middle / line["nfe"]
        if line.get("tokens") is not None:
            line["tokens_per_forward"] = line["tokens"] / line.get("batch", 1) / line["nfe"]
    if bench == "kernel":
        line |= {"median_us": 1e6 * middle, "min_us": 1e6 * min(seconds)}
    return line


class Lines:
    """A file of lines that is whole after every one of them; no file where no name is given.

    What the file held stays until `begin`.
    """

    def __init__(self, path):
        self.all, self.path, self.file = [], path, None
        if path:
            try:
                self.file = open(path, "a", encoding="utf-8")
            except OSError as error:
                raise SystemExit(f"--json {path}: cannot be written: {error.strerror}") from None

    def begin(self):
        if self.file and self.file.seekable():
            self.file.truncate(0)

    def add(self, line):
        self.all.append(line)
        if self.file:
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            self.file.flush()
        return line
