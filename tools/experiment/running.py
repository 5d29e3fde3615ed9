"""Commands of an experiment, one after the other."""

import shlex
import subprocess
import sys


def run(command, dry_run):
    """Runs a command to its end, or prints it; what it says on standard output is dropped."""
    words = [str(word) for word in command]
    if dry_run:
        print(shlex.join(words))
        return
    code = subprocess.run(words, stdout=subprocess.DEVNULL).returncode
    if code == 130:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130)
    if code != 0:
        raise SystemExit(f"{shlex.join(words)}\nfailed with {code}")
