"""Kernels compiled ahead: the list is what runs launch, launches find them, and nothing is left over or in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import zero_filled
from zero_filled import order_of, spec_of

from dsabench import ops
from dsabench.compilation import ahead, standby
from dsabench.compilation.ahead import NOTHING, Ahead, compiling, shapes_of
from dsabench.compilation.done_before import DoneBefore, notes_of_this_code
from dsabench.compilation.done_before import cache as triton_cache
from dsabench.compilation.run_shape import Shape
from dsabench.compilation.standby import Standby
from dsabench.engine.device import resolve
from dsabench.spec.run import EngineSpec

pytestmark = pytest.mark.skipif(not ops.HAS_TRITON, reason="Triton is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Triton's, whose kernels are compiled and not interpreted."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return tmp_path / "triton"


def reported(what: str, corpus: Path) -> Any:
    """What the program of zero_filled reports."""
    program = subprocess.run([sys.executable, zero_filled.__file__, what, corpus], capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout)


def test_runs_launch_the_kernels_that_are_foretold_and_no_others(corpus: Path, cache: Path) -> None:
    found = reported("launches", corpus)
    assert found.keys() == zero_filled.RUNS.keys() - {"dense"} | {"bench"}
    for name, (launched, foretold) in found.items():
        assert launched == foretold, name
        assert len(launched) > 25, name


def test_a_run_finds_all_its_kernels_in_tritons_cache(corpus: Path, cache: Path) -> None:
    found = reported("compiled", corpus)
    assert found["failed"] == [] and found["remembered"]
    assert found["found"] == found["kernels"] > 25
    assert found["compiled"] == 0
    assert found["told"][0].startswith("compiling GPU kernels") and found["told"][-1] == ahead.PART
    assert f"{ahead.PART} {found['kernels'] // 2}/{found['kernels']}" in found["told"]


def group(leader: int) -> list[int]:
    """Processes of the group, zombies apart."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("victim", ["parent", "compiler"])
def test_no_process_outlives_a_parent_or_a_compiler_that_is_killed(victim: str, corpus: Path, cache: Path) -> None:
    program = (
        "import sys, pathlib, zero_filled\n"
        "from dsabench.compilation.ahead import Ahead\n"
        "from dsabench.compilation.done_before import DoneBefore\n"
        "from dsabench.compilation.standby import Standby\n"
        "order = zero_filled.order_of(zero_filled.spec_of(pathlib.Path(sys.argv[1]), 'dense'))\n"
        "ahead = Ahead(Standby(), order, DoneBefore(order))\n"
        "while ahead.count.done < 3: ahead._hear(60)\n"
        "print(ahead.process.process.pid, flush=True)\n"
        "ahead.wait()\n"
        "print('goes on', ahead.finished, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, corpus], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        leader = int(parent.stdout.readline())
        assert len(group(leader)) >= 3, "the process and those that it forked"
        os.kill(parent.pid if victim == "parent" else leader, signal.SIGKILL)
        until = time.monotonic() + 10
        while group(leader) and time.monotonic() < until:
            time.sleep(0.05)
        assert not group(leader)
        if victim == "compiler":
            assert parent.stdout.readline() == "goes on False\n"
        else:
            parent.wait()


def test_what_cannot_be_compiled_is_no_error(corpus: Path, cache: Path) -> None:
    order = order_of(spec_of(corpus, "dense"))
    shape = replace(cast(Shape, order.wanted[0]), micro_batch=3)
    kernels = Ahead(Standby(), replace(order, wanted=(shape,)), DoneBefore(order))
    kernels.wait()
    assert kernels.finished
    assert len(kernels.failed) == 1 and kernels.failed[0].startswith("AssertionError")
    assert kernels.count.done == kernels.count.wanted > 5, "those of the audit"


def test_without_a_gpu_nothing_is_started(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "Standby", None)
    spec = spec_of(corpus, "dense")
    standby.begin(spec.engine)
    execution = resolve(spec.engine.model_copy(update={"device": "cpu"}))
    with compiling(shapes_of([spec], execution), execution) as kernels:
        assert kernels is NOTHING
        kernels.wait()


@pytest.mark.parametrize("engine", [{}, {"device": "cuda:1"}, {"device": "cpu"}, {"kernels": "off"}])
@pytest.mark.parametrize("known", [False, True])
def test_a_process_stands_by_on_a_gpu_where_this_code_compiled_nothing_yet(
    engine: dict[str, Any], known: bool, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[object]()

    class Stand:
        def __init__(self) -> None:
            begun.append(self)

        def close(self) -> None:
            begun.remove(self)

    monkeypatch.setattr(standby, "_DRIVER", tmp_path)
    monkeypatch.setattr(standby, "Standby", Stand)
    monkeypatch.setattr(os, "cpu_count", lambda: standby.CORES)
    if known:
        notes_of_this_code().mkdir(parents=True)
    for _ in range(2):
        standby.begin(EngineSpec(**engine))
    assert len(begun) == (not known and engine.get("device") != "cpu" and engine.get("kernels") != "off")
    standby.dismiss()
    assert not begun


def test_the_cache_is_tritons_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton import knobs

    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(triton_cache()) == knobs.cache.dir
    for name in ("TRITON_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert str(triton_cache()) == knobs.cache.dir
