"""Part 1 of tools/gpu_check.sh: what the numbers were measured on. Needs no PyTorch; says its version where it is.

  facts.py --card       exit code 0 and the driver's cards, or 1 and why there is none
  facts.py --cublaslt   where pip's cuBLASLt lies, if the loader does not find one; nothing otherwise
  facts.py --sanitizer  where pip's compute-sanitizer lies; nothing where it is not installed
  facts.py --torch      exit code 0 if PyTorch can be imported, or 1 and why not
"""

import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

QUERY = (
    "name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm,clocks.max.mem,clocks.sm,temperature.gpu,"
    "utilization.gpu,ecc.mode.current,mig.mode.current"
)


def output(command):
    """What a command prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def card():
    """(whether there is a card, words): by the driver itself."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False, "CUDA_VISIBLE_DEVICES hides all cards"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False, "no NVIDIA driver (libcuda.so.1)"
    code = driver.cuInit(0)
    if code != 0:
        return False, f"the NVIDIA driver does not start (cuInit gives {code})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False, "the NVIDIA driver sees no card"
    return True, f"{count.value} card{'s' * (count.value > 1)}"


def package_folders():
    """Folders of installed packages that may hold NVIDIA's libraries."""
    folders = []
    for package in ("torch", "nvidia"):
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        folders += [Path(p) for p in (found.submodule_search_locations or [])] if found else []
    return folders


def cublaslt():
    """The path of a cuBLASLt of the Python installation, or None where the loader finds one by itself, or there is none."""
    for name in ("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"):
        try:
            ctypes.CDLL(name)
            return None
        except OSError:
            pass
    for folder in package_folders():
        for place in ("cu13/lib", "cublas/lib", "lib"):
            for path in sorted(folder.glob(f"{place}/libcublasLt.so.*"), reverse=True):
                return str(path)
    return None


def sanitizer():
    for folder in package_folders():
        for path in sorted(folder.glob("**/compute-sanitizer")):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def torch_facts():
    try:
        import torch
    except Exception as error:  # a broken installation fails in its own ways
        return {"torch": None, "torch_error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
    facts = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    try:
        facts["cudnn"] = torch.backends.cudnn.version()
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            facts.update(
                torch_device=properties.name,
                capability=f"{properties.major}.{properties.minor}",
                multiprocessors=properties.multi_processor_count,
                memory_gib=round(properties.total_memory / 2**30, 1),
                l2_mib=round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
            )
    except RuntimeError as error:
        facts["torch_error"] = str(error).splitlines()[0][:200]
    facts["transformers"] = None
    try:
        import importlib.metadata

        facts["transformers"] = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        pass
    return facts


def facts(lacuna):
    root = Path(__file__).resolve().parent.parent.parent
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
    }
    line = output(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"])
    if line:
        values = [value.strip() for value in line.splitlines()[0].split(",")]
        found.update(zip((f"smi_{name}" for name in QUERY.split(",")), values))
        found["cards"] = len(line.splitlines())
    found.update(torch_facts())
    if lacuna:
        found["lacuna"] = output([lacuna, "--version"]) or "does not say its version"
    if (root / ".git").exists():
        commit = output(["git", "-C", str(root), "rev-parse", "--short", "HEAD"])
        changed = output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
        if commit:
            found["commit"] = commit + (", with changes" if changed else "")
    named = os.environ.get("LACUNA_CUBLASLT")
    if named:
        found["cublaslt"] = Path(named).name
    return found


def main():
    arguments = sys.argv[1:]
    if arguments == ["--card"]:
        there, words = card()
        print(words)
        return 0 if there else 1
    if arguments == ["--cublaslt"]:
        print(cublaslt() or "")
        return 0
    if arguments == ["--sanitizer"]:
        print(sanitizer() or "")
        return 0
    if arguments == ["--torch"]:
        try:
            import torch  # noqa: F401
        except Exception as error:
            print(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
            return 1
        return 0
    if len(arguments) in (2, 4) and arguments[0] == "--output":
        lacuna = arguments[3] if len(arguments) == 4 and arguments[2] == "--lacuna" else None
        with open(arguments[1], "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": "facts", **facts(lacuna)}) + "\n")
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
