"""Commands of an experiment, one after the other or a few at a time."""

import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


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


def at_a_time(jobs, calls):
    """What each of the calls returns, in their order; so many run at a time, and the first failure starts no more.

    Ctrl-C reaches the commands, which end in their own time with a checkpoint; it does not kill them from here.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(call) for call in calls]
        try:
            return [future.result() for future in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
