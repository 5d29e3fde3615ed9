"""What a comparison needs: the binary, an interpreter that has PyTorch, a model folder, words about the machine."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / "tools/.venv"
PACKAGES = ["torch", "transformers>=4.56", "numpy", "safetensors"]
MODEL = ROOT / "target/smollm2"
MADE_UP = ROOT / "target/smollm2-shape"


def say(words):
    """A line on standard error."""
    print(words, file=sys.stderr, flush=True)


def processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load():
    """Threads that want to run, of the last minute; `None` where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def commit(binary):
    """The git commit of the repository that the binary was built in, with -dirty after changes; None if it is not this one."""
    try:
        Path(binary).resolve().relative_to(ROOT)
        words = [["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        head, changed = (
            subprocess.run(["git", "-C", ROOT, *of], check=True, capture_output=True, text=True).stdout.strip() for of in words
        )
    except (ValueError, OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changed else "")


def has_packages(python):
    """Whether an interpreter has all that the PyTorch side imports."""
    names = [package.split(">")[0] for package in PACKAGES]
    if python == sys.executable:
        return all(importlib.util.find_spec(name) for name in names)
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        return subprocess.run([python, "-c", code, *names], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_python(asked, index=None):
    """An interpreter that has PyTorch: the asked one, this one, or that of tools/.venv, which is made if need be."""
    if asked:
        if not has_packages(asked):
            raise SystemExit(f"--python {asked}: it does not import {', '.join(PACKAGES)}; install them there, or leave --python out")
        return asked
    if has_packages(sys.executable):
        return sys.executable
    python = str(VENV / "bin/python")
    if has_packages(python):
        return python
    say(f"making {VENV.relative_to(ROOT)} with {', '.join(PACKAGES)}: this can take some minutes")
    try:
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        if index:
            subprocess.run([*pip, "--index-url", index, "torch"], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"PyTorch could not be installed ({error}). Name an interpreter that has torch and transformers with --python,"
            " an index that can be reached with --torch-index, or measure without it: --lacuna-only"
        ) from None
    return python


def find_lacuna(asked):
    """The binary: the asked one, or the release build of this repository, brought up to date."""
    if asked:
        if not (os.path.isfile(asked) and os.access(asked, os.X_OK)):
            raise SystemExit(f"--lacuna {asked}: no program there; leave it out to build one (cargo build --release)")
        return asked
    try:
        subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "lacuna"], cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"lacuna could not be built ({error}): name a binary with --lacuna FILE") from None
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release/lacuna")


def find_model(asked, made_up, python):
    """A LLaMA model folder: the asked one, that of tools/fetch_smollm2.py, or one of made-up weights of its shape."""
    if asked:
        if not Path(asked, "config.json").is_file():
            raise SystemExit(f"--model {asked}: no config.json there; python3 tools/fetch_smollm2.py target/smollm2 makes a model folder")
        return str(asked)
    if made_up:
        if not (MADE_UP / "config.json").is_file():
            say(f"writing made-up weights in the shape of SmolLM2-135M to {MADE_UP.relative_to(ROOT)}")
            subprocess.run([python, str(ROOT / "tools/compare_torch.py"), "--write-made-up", str(MADE_UP)], check=True)
        return str(MADE_UP)
    if not (MODEL / "config.json").is_file():
        raise SystemExit(
            f"no model in {MODEL.relative_to(ROOT)}: make it with python3 tools/fetch_smollm2.py target/smollm2, name one with"
            " --model DIR, or take random weights of its shape with --made-up"
        )
    return str(MODEL)
