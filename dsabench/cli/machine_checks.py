"""Checks of the machine for `dsabench doctor`: what training here needs, what is amiss, and the mend."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dsabench._version import __version__
from dsabench.errors import DsabenchError

OK, WARN, FAIL = "ok", "warn", "fail"

_CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")
"""Linux: microseconds of cores that a container gets in each period, or `max`; and the period."""

_LOOK_S = 0.5
"""Seconds for which the load of other programs is measured."""

_LOW_DISK, _NO_DISK = 5e9, 2e8
"""Bytes free below which a warning is due, and below which nothing can be kept. A run of `seed` keeps 0.11 GB."""


class Check(NamedTuple):
    """One line of the examination."""

    name: str
    state: str
    """`ok`, `warn` (works, but not as well as it could) or `fail` (will not work)."""

    found: str
    mend: str = ""
    """What to do; empty when nothing is amiss."""


def examine(store: Path) -> Iterator[Check]:
    """Every check, each as soon as it is made. One that breaks is a failure with the error in it."""
    checks: dict[str, Callable[[], Check]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "device": _device,
        "triton": _triton,
        "threads": _threads,
        "load": _load,
        "home": _home,
        "cache": _cache,
        "store": lambda: _store(store),
        "disk": lambda: _disk(store),
        "terminal": _terminal,
    }
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # a broken installation raises anything; that it does is the finding
            yield Check(name, FAIL, f"{type(error).__name__}: {error}".splitlines()[0], "see the error; reinstall")


def _python() -> Check:
    return Check("python", OK, f"{platform.python_version()}, dsabench {__version__}")


def _packages() -> Check:
    """Those that dsabench declares: installed, and not older than it takes."""
    try:
        requirements = metadata.requires("dsabench") or []
    except metadata.PackageNotFoundError:
        return Check("packages", WARN, "dsabench is not installed but run from its folder", "pip install . there")
    found, wrong = [], []
    for requirement in requirements:
        needed = re.match(r"([\w-]+)[^;]*$", requirement)  # after a semicolon: an extra, or another platform's
        if not needed:
            continue
        name, lowest = needed[1], re.search(r">=\s*([\d.]+)", requirement)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {version}")
        if lowest and _numbers(version) < _numbers(lowest[1]):
            wrong.append(f"{name} {version} is older than {lowest[1]}")
    if wrong:
        return Check(
            "packages", FAIL, "; ".join(wrong), "pip install --upgrade dsabench, or in a checkout: pip install ."
        )
    return Check("packages", OK, ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch() -> Check:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return Check("torch", OK, f"{torch.__version__}, {built}")


def _device() -> Check:
    import torch

    from dsabench.engine.device import default_device
    from dsabench.engine.machine import cpu_model, nvidia_driver

    device = default_device()
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        found = f"{', '.join(names)}; {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < total / 2:
            return Check("device", WARN, found, "other programs use this GPU: see nvidia-smi, or take another (cuda:N)")
        return Check("device", OK, found)
    found = f"{device.type} ({cpu_model() or platform.machine()}, {os.cpu_count()} cores)"
    if driver := nvidia_driver():
        why = "cannot use the GPU" if torch.backends.cuda.is_built() else "is built without CUDA"
        return Check(
            "device", WARN, f"{found}; there is an NVIDIA driver ({driver}), and this PyTorch {why}", "see pytorch.org"
        )
    return Check("device", OK, f"{found}; on a CPU take --config quick" if device.type == "cpu" else found)


def _triton() -> Check:
    from dsabench import ops
    from dsabench.engine.device import default_device

    device = default_device()
    installed = importlib.util.find_spec("triton") is not None
    if device.type != "cuda":
        return Check("triton", OK, f"not used on this device ({'installed' if installed else 'not installed'})")
    reason = ops.why_not(device)
    if reason is None:
        version = importlib.import_module("triton").__version__  # its package has several names
        return Check("triton", OK, f"{version}, a kernel was tried")
    mend = "pip install triton" if not installed else "a C compiler and a driver that fits this PyTorch are needed"
    return Check("triton", WARN, f"fused kernels do not run, so training is slower: {reason}", mend)


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), _cores()
    found = f"{threads} threads, {cores} of {os.cpu_count()} cores are this process's"
    if threads > cores:
        return Check("threads", WARN, found, f"OMP_NUM_THREADS={cores} before the command: threads that wait are slow")
    return Check("threads", OK, found)


def _cores() -> int:
    """Cores that this process may use: those it is bound to, and a container's share of them, rounded up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_SHARE.read_text(encoding="ascii").split()
        return min(bound, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or `max`: all
        return bound


def _load() -> Check:
    import torch

    from dsabench.engine.busy_cores import Others, remedy

    others = Others()
    time.sleep(_LOOK_S)
    cores = others.cores()
    if cores is None:
        return Check("load", OK, "this system does not say how busy it is")
    found = f"other programs keep about {cores:.1f} of {os.cpu_count()} cores busy"
    if others.note(torch.get_num_threads()):
        mend = f"step times on this CPU will mean little: wait for the others to end{remedy()}"
        return Check("load", WARN, found, mend)
    return Check("load", OK, found)


def _home() -> Check:
    try:
        home = Path.home()
    except RuntimeError:
        return Check("home", WARN, "this user has no home folder", "set HOME, or DSABENCH_CACHE for the cache")
    if not home.is_dir():
        return Check("home", WARN, f"{home} is no folder", "set HOME, or DSABENCH_CACHE for the cache")
    return Check("home", OK, str(home))


def _cache() -> Check:
    from dsabench.data.cache import cache_folder, writing

    try:
        folder = cache_folder("examined")
        with writing(folder.parent):
            _try(folder)
            folder.rmdir()
    except DsabenchError as error:
        return _refused("cache", error, "name a folder you can write: DSABENCH_CACHE=DIR")
    return Check("cache", OK, f"{folder.parent} can be written")


def _store(store: Path) -> Check:
    from dsabench.store import check_writable

    try:
        check_writable(store)
        _try(_existing(store))
    except (DsabenchError, OSError) as error:
        return _refused("store", error, "name a folder you can write: --store DIR, or DSABENCH_STORE=DIR")
    return Check("store", OK, f"{store} can be written" if store.exists() else f"{store} can be made")


def _refused(name: str, error: Exception, mend: str) -> Check:
    """A failure by a message of ours, which has its own advice behind a semicolon, or by one of the system."""
    found, _, advice = str(error).partition("; ")
    return Check(name, FAIL, found, advice or mend)


def _try(folder: Path) -> None:
    """Write, lock and remove a file in `folder`; OSError when one cannot."""
    from dsabench import locks

    with tempfile.TemporaryDirectory(dir=folder, prefix=".examined-") as inside:
        (Path(inside) / "file").write_bytes(b"x")
        if (lock := locks.acquire(Path(inside) / "lock", 5)) is not None:
            lock.release()


def _disk(store: Path) -> Check:
    """Free space for store and cache: the lesser, where they lie apart."""
    from dsabench.data.cache import cache_root

    places = [store]
    with suppress(DsabenchError):  # no home, which is said of the cache
        places.append(cache_root())
    free = {place: shutil.disk_usage(place).free for place in map(_existing, places)}
    place = min(free, key=lambda one: free[one])
    found, free_there = f"{free[place] / 1e9:.1f} GB free at {place}", free[place]
    if free_there < _NO_DISK:
        return Check("disk", FAIL, found, "free some space: nothing can be kept")
    if free_there < _LOW_DISK:
        return Check("disk", WARN, found, "a run of the default experiment keeps 0.11 GB, 30 of them 3.4 GB")
    return Check("disk", OK, found)


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.is_dir())


def _terminal() -> Check:
    encoding = getattr(sys.stdout, "encoding", None) or "unknown"
    size = shutil.get_terminal_size()
    where = f"{size.columns} columns" if sys.stdout.isatty() else "no terminal (a pipe or a file)"
    found = f"{encoding}, {where}"
    try:
        "\u00e9\u2013\u4e2d".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return Check(
            "terminal", WARN, f"{found}; other letters are spelt out", "PYTHONIOENCODING=utf-8 before the command"
        )
    if sys.stdout.isatty() and size.columns < 80:
        return Check("terminal", WARN, found, "80 columns or more: tables are broken into lines in a narrower one")
    return Check("terminal", OK, found)
