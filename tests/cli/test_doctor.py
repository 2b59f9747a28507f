"""`dsabench doctor`: every line on a sound machine, and each fault that is planted found, with its mend."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell

from dsabench import ops
from dsabench.cli import machine_checks
from dsabench.cli.machine_checks import FAIL, OK, WARN
from dsabench.engine import busy_cores, device, machine

NAMES = ["python", "packages", "torch", "device", "triton", "threads", "load", "home", "cache", "store", "disk"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with nothing amiss, whatever the one is that runs the tests."""
    monkeypatch.setattr(machine_checks, "_LOOK_S", 0.0)
    monkeypatch.setattr(busy_cores.Others, "cores", lambda self: 0.0)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    monkeypatch.setattr(machine, "nvidia_driver", lambda: None)
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "cache"))


def checks(shell: Shell, *words: str) -> tuple[int, dict[str, Any]]:
    code, out, err = shell("doctor", *words, "--json")
    assert err == ""
    document = json.loads(out)
    assert document["ok"] == (code == 0)
    return code, {check["name"]: check for check in document["checks"]}


def test_a_sound_machine_is_well(shell: Shell) -> None:
    code, found = checks(shell)
    assert code == 0
    assert list(found) == [*NAMES, "terminal"]
    assert {name: one for name, one in found.items() if one["state"] != OK} == {}
    assert all(one["found"] and not one["mend"] for one in found.values())
    assert torch.__version__ in found["torch"]["found"] and "numpy" in found["packages"]["found"]


def test_nothing_is_left_behind(shell: Shell, tmp_path: Path) -> None:
    assert checks(shell, "--store", "deep/runs")[0] == 0
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "cache"] == []


@pytest.mark.parametrize("columns", [80, 200])
def test_lines_fit_and_end_in_a_sum(shell: Shell, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = shell("doctor")
    assert code == 0 and out.endswith("\nall is well\n")
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= columns  # a path is not broken
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**9))
    Path("runs").write_text("")
    code, out, _ = shell("doctor")
    assert code == 1 and out.endswith("\n1 failure, 1 warning\n") and out.count("mend: ") == 2
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= columns  # a path is not broken


def blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")


def refused_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_locks(*args: Any, **settings: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)


def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**6))


def nearly_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**9))


def full_cache_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    sizes = {tmp_path / "cache": 10**6}
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: Usage(0, 0, sizes.get(path, 10**12)))


def busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(busy_cores.Others, "cores", lambda self: float(os.cpu_count() or 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def many_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine_checks.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def small_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    share = tmp_path / "cpu.max"
    share.write_text("150000 100000\n")
    monkeypatch.setattr(machine_checks, "_CPU_SHARE", share)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(machine_checks.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks.Path, "home", lambda: exec('raise RuntimeError("no home")'))


def home_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))


def driver_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "550.90.07")


def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *of: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * 10**9, 80 * 10**9))


def no_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_gpu(monkeypatch)
    find = machine_checks.importlib.util.find_spec
    monkeypatch.setattr(
        machine_checks.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )
    monkeypatch.setattr(ops, "why_not", lambda device: "Triton is not installed")


def triton_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_gpu(monkeypatch)
    monkeypatch.setattr(ops, "why_not", lambda device: "RuntimeError: Failed to find C compiler")


def a_gpu_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_gpu(monkeypatch)
    monkeypatch.setattr(ops, "why_not", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * 10**9, 80 * 10**9))


def an_old_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = metadata.version
    monkeypatch.setattr(machine_checks.metadata, "version", lambda name: "2.9.1" if name == "torch" else version(name))
    monkeypatch.setattr(machine_checks.metadata, "requires", lambda name: ["torch<3,>=2.10", 'x>=9; extra == "hf"'])


def a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks.metadata, "requires", lambda name: ["sotu-of-nowhere==0.1.2"])


def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine_checks.metadata, "requires", requires)


def broken_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


FAULTS = [
    (blocked, "cache", FAIL, "cannot write the data cache", "DSABENCH_CACHE"),
    (refused_locks, "cache", FAIL, "Operation not supported", "DSABENCH_CACHE"),
    (refused_locks, "store", FAIL, "Operation not supported", "--store DIR"),
    (full, "disk", FAIL, "0.0 GB free", "free some space"),
    (nearly_full, "disk", WARN, "1.0 GB free", "0.11 GB"),
    (full_cache_alone, "disk", FAIL, "0.0 GB free at", "free some space"),
    (busy, "load", WARN, "cores busy", "GOMP_SPINCOUNT"),
    (many_threads, "threads", WARN, "64 threads, 2 of", "OMP_NUM_THREADS=2 "),
    (small_container, "threads", WARN, "3 threads, 2 of", "OMP_NUM_THREADS=2 "),
    (no_home, "home", WARN, "no home folder", "HOME"),
    (home_is_nowhere, "home", WARN, "nowhere is no folder", "HOME"),
    (driver_without_cuda, "device", WARN, "550.90.07", "pytorch.org"),
    (no_triton, "triton", WARN, "Triton is not installed", "pip install triton"),
    (triton_that_fails, "triton", WARN, "C compiler", "C compiler"),
    (a_gpu_in_use, "device", WARN, "2.0 of 80.0 GB free", "nvidia-smi"),
    (an_old_package, "packages", FAIL, "torch 2.9.1 is older than 2.10", "pip install"),
    (a_missing_package, "packages", FAIL, "sotu-of-nowhere is missing", "pip install"),
    (not_installed, "packages", WARN, "not installed", "pip install ."),
    (broken_torch, "torch", FAIL, "torch", "reinstall"),
]


@pytest.mark.parametrize(
    ("plant", "name", "state", "found", "mend"), FAULTS, ids=lambda one: getattr(one, "__name__", "")
)
def test_a_fault_is_found_and_has_a_mend(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    plant: Any,
    name: str,
    state: str,
    found: str,
    mend: str,
) -> None:
    plant(monkeypatch, tmp_path)
    code, said = checks(shell)
    assert said[name]["state"] == state and found in said[name]["found"] and mend in said[name]["mend"], said[name]
    assert code == (1 if state == FAIL else 0)


@pytest.mark.parametrize("store", ["file", "file/inside", "store"])
def test_a_store_that_cannot_be_one_fails(shell: Shell, store: str) -> None:
    Path("file").write_text("")
    Path("store").mkdir()
    Path("store/store.json").write_text("no JSON")
    code, found = checks(shell, "--store", store)
    assert code == 1 and found["store"]["state"] == FAIL and store.partition("/")[0] in found["store"]["found"]
    assert [name for name, one in found.items() if one["state"] != OK] == ["store"]


@pytest.mark.parametrize(("encoding", "state"), [("ascii", WARN), ("latin-1", WARN), ("cp1252", WARN), ("utf-8", OK)])
def test_an_encoding_that_lacks_letters_is_told(monkeypatch: pytest.MonkeyPatch, encoding: str, state: str) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    check = machine_checks._terminal()
    assert check.state == state and check.found.startswith(encoding)
    assert ("PYTHONIOENCODING" in check.mend) == (state == WARN)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing patched: a line for each check, whatever the machine is."""
    words = [sys.executable, "-c", "from dsabench.cli.app import main; main()", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(Path(machine_checks.__file__).parents[2])}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode in (0, 1) and done.stderr == ""
    shown = [line.split()[1] for line in done.stdout.splitlines() if line[:4].strip() in (OK, WARN, FAIL)]
    assert shown == [*NAMES, "terminal"]
