"""A query's keys in the terminal: marks say what colours say, lines fit, nothing is lost."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from selections import inspection, random_layer

from dsabench.cli.selection_text import print_inspection, token_kinds, wrapped
from dsabench.engine.inspection import LayerSelection


def printed(coloured: bool, layer: LayerSelection, query: int) -> str:
    console = Console(
        file=io.StringIO(), width=200, force_terminal=coloured, color_system="truecolor" if coloured else None,
        highlight=False, markup=False, no_color=False,
    )  # fmt: skip
    print_inspection(inspection([layer]), layer, query, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_marks_say_what_colours_say() -> None:
    layer = random_layer(30, 9)
    plain, coloured = printed(False, layer, 25), printed(True, layer, 25)
    assert "\x1b[" not in plain
    assert "\x1b[" in coloured
    kinds = token_kinds(layer, 25)
    assert [kinds.count(kind) for kind in ("3", "2", "1")] == ([3, 3, 3] if not layer.member_TS[25, 25] else [3, 3, 2])
    by_score = [kinds[key] for key in layer.selected_TK[25] if key != 25]
    assert by_score == sorted(by_score, reverse=True)
    for i, kind in enumerate(kinds[:25]):
        mark = {"": f" w{i} ", "missed": f" {{w{i}}}"}.get(kind, f" [w{i}|{kind}]")
        assert mark in plain.replace("\n", " ") + " ", (i, kind)
    assert "<<w25>>" in plain
    assert "<<w25>>" in re.sub(r"\x1b\[[0-9;]*m", "", coloured)


def test_long_windows_show_the_tokens_near_the_query_and_count_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsabench.cli.selection_text.BEFORE", 10)
    layer = random_layer(60, 20)
    said = printed(False, layer, 50)
    assert f"(40 earlier tokens, {int(layer.member_TS[50, :40].sum())} of them selected" in said
    assert " w39" not in said.split("earlier tokens")[1]


def test_lines_fit_and_lose_nothing() -> None:
    tokens = [("x" * 190, "1"), (" word", ""), ("\u4f60" * 50, "3"), (" a\\n", ""), ("b", ""), ("\\x1b" * 30, "missed")]
    for marks in (False, True):
        lines = list(wrapped(tokens, 80, marks))
        assert all(line.cell_len <= 80 for line in lines)
        joined = "".join(line.plain for line in lines)
        assert joined.count("x" * 1) == 190 + 30
        assert joined.count("\u4f60") == 50
        assert lines[-1].plain.endswith("\\x1b}" if marks else "\\x1b")
        ends = [line.plain for line in lines if line.plain.endswith("\\n")]
        assert len(ends) == 1
