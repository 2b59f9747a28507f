"""The tables and the figure of a document as a GPU would give it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_bench

from dsabench.bench.document import Document
from dsabench.bench.summary import TRAINED
from dsabench.cli.console import PlainConsole
from dsabench.cli.views.bench_tables import bench_lines
from dsabench.figures.bench_times import LOOKS, bench_figure


def printed(document: Document, width: int | None = None) -> list[str]:
    console = PlainConsole(
        file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None, highlight=False
    )
    console.soft_wrap = width is None
    bench_lines(document, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_it_fits_the_terminal(width: int) -> None:
    lines = printed(synthetic_bench.document(), width)
    assert max(map(len, lines)) <= width, max(lines, key=len)
    assert "dsa-triton" in "".join(lines) and ("left out at 80" in "".join(lines)) == (width == 80)


def test_every_cell_says_its_time_or_why_there_is_none() -> None:
    lines = printed(synthetic_bench.document())
    at = next(i for i, line in enumerate(lines) if line.startswith(" 65536"))
    parts = [line[8:].split("  ", 1) for line in lines[at : at + 11]]
    rows = {name: rest.split() for name, rest in parts}
    assert rows["dense-cudnn"] == ["70.0", "68.6-71.4", "21.0", "49.0", "14.3", "1.8", "3277", "1.00"]
    assert rows["dsa-triton"][0] == "49.5"
    assert rows["dsa-triton"][-1] == "1.41"
    assert rows["dsa-triton (warm-up)"][-1] == "0.59"
    assert rows["dense-math"] == ["out", "of", "memory"]
    assert rows["window-flex"] == ["failed", "[1]"]
    assert rows["dsa-reference"] == ["WRONG", "[2]"]
    assert "[1] InductorError: no such kernel" in lines
    assert "[2] d k is off by 3.0e-01 of its size (limit 2e-02)" in lines
    assert "out of memory: dense-math at L=32768: CUDA out of memory. Tried to allocate 64 GiB" in lines
    assert any("largest relative error is 1.0e-03 (dsa-triton, d k)" in line for line in lines)
    assert "skipped: dsa-masked (warm-up): no reason." in lines


def test_speed_ups_are_against_the_fastest_dense_of_the_same_length_and_wrong_ones_get_none() -> None:
    cells = synthetic_bench.document().cells
    of = {(cell.implementation, cell.stage, cell.length): cell for cell in cells}
    for length in synthetic_bench.LENGTHS:
        fastest = of["dense-cudnn", "sparse", length].ms
        assert fastest is not None
        for cell in (one for one in cells if one.length == length):
            assert (cell.speed_up is None) == (cell.ms is None)
            assert cell.ms is None or cell.speed_up == fastest / cell.ms


def test_the_crossover_is_said_and_drawn() -> None:
    document = synthetic_bench.document()
    assert "crossover: dsa-triton is faster than the fastest dense from about L = 46,341 on." in printed(document)
    left, right = bench_figure(document).axes
    assert "crossover: L = 46,341" in [text.get_text() for text in left.texts]
    for axes in (left, right):
        (vertical,) = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert round(vertical.get_xdata()[0]) == 46341
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


def test_crossovers_of_random_and_trained_selections_are_told_apart() -> None:
    document = synthetic_bench.document()
    random = document.crossovers[0]
    trained = random.model_copy(update={"implementation": TRAINED, "length": 20_000.0})
    left, right = bench_figure(document.model_copy(update={"crossovers": [random, trained]})).axes
    (said,) = [text.get_text() for text in left.texts]
    assert said == "crossover: L = 46,341, random\ncrossover: L = 20,000, trained"
    for axes in (left, right):
        lines = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert [round(line.get_xdata()[0]) for line in lines] == [46341, 20000]
        assert lines[0].get_linestyle() != lines[1].get_linestyle()
    left, _ = bench_figure(document.model_copy(update={"crossovers": [trained]})).axes
    assert [text.get_text() for text in left.texts] == ["crossover: L = 20,000, trained"]


def test_no_crossover_is_said_and_not_drawn() -> None:
    document = synthetic_bench.document(crossing=False)
    assert document.crossovers[0].length is None
    left, _ = bench_figure(document).axes
    (said,) = [text.get_text().replace("\n", " ") for text in left.texts]
    assert (
        said == "dsa-triton is not faster than the fastest dense up to L = 131,072, where it takes 2.00 times as long."
    )
    assert all(len(line.get_xdata()) > 2 for line in left.lines)


def test_a_line_for_every_implementation_that_has_times() -> None:
    document = synthetic_bench.document()
    (legend,) = bench_figure(document).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense-flash", "dense-flash-gqa", "dense-cudnn", "dense-cudnn-gqa", "dense-efficient", "dense-math",
        "dsa-masked", "dsa-triton", "dsa-triton (warm-up)",
    ]  # fmt: skip
    empty = document.model_copy(update={"cells": [], "crossovers": []})
    assert [axes.texts[0].get_text() for axes in bench_figure(empty).axes] == ["nothing was timed"] * 2


def test_no_two_lines_look_alike_in_grey() -> None:
    looks = [(look.marker, look.line) for look in LOOKS.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.slow
def test_tables_and_figure_need_no_torch() -> None:
    tests = Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import synthetic_bench as s, test_tables as t\n"
        "d = s.document(); t.printed(d); t.bench_figure(d); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tests), str(tests.parent / "support")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
