"""Commands of an experiment, one after the other or a few at a time."""

import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

STOPPED = threading.Event()  # by Ctrl-C or by a failure: nothing more is started


def leave_ctrl_c_to_commands():
    """Ctrl-C reaches the commands, which end in their own time with a checkpoint; nothing is started behind it."""
    signal.signal(signal.SIGINT, lambda *_: STOPPED.set())


def stop():
    raise SystemExit(130)


def run(command, dry_run):
    """Runs a command to its end, or prints it; what it says on standard output is dropped."""
    words = [str(word) for word in command]
    if dry_run:
        print(shlex.join(words))
        return
    if STOPPED.is_set():
        stop()
    code = subprocess.run(words, stdout=subprocess.DEVNULL).returncode
    if code == 130:
        STOPPED.set()
        print("stopped; the same command goes on", file=sys.stderr)
        stop()
    if code != 0:
        STOPPED.set()
        raise SystemExit(f"{shlex.join(words)}\nfailed with {code}")


def at_a_time(jobs, calls):
    """What each of the calls returns, in their order; so many run at a time, and the first failure starts no more."""

    def guarded(call):
        if STOPPED.is_set():
            stop()
        try:
            return call()
        except BaseException:
            STOPPED.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(guarded, call) for call in calls]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        failures = [e for e in (f.exception() for f in done) if e is not None]
        if failures:
            # The first failure in time may be one that only followed from another: words before bare codes.
            raise next((e for e in failures if not isinstance(e, SystemExit) or isinstance(e.code, str)), failures[0])
        return [future.result() for future in running]
