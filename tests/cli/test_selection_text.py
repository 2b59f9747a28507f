"""A query's keys in the terminal: marks say what colours say, lines fit, nothing is lost."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from selections import asking, inspection, random_layer

from dsabench.cli.views.selection_text import print_inspection, token_kinds, wrapped
from dsabench.selection.capture import LayerSelection
from dsabench.selection.targets import Questions


def printed(coloured: bool, layer: LayerSelection, query: int, questions: Questions | None = None) -> str:
    console = Console(
        file=io.StringIO(), width=200, force_terminal=coloured, color_system="truecolor" if coloured else None,
        highlight=False, markup=False, no_color=False,
    )  # fmt: skip
    print_inspection(inspection([layer], questions=questions), layer, query, console)
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
    monkeypatch.setattr("dsabench.cli.views.selection_text.BEFORE", 10)
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


def test_targets_have_their_own_marks_whatever_else_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(30, 9)
    kept = [int(key) for key in layer.selected_TK[25] if key != 25]
    rest = sorted(set(range(25)) - set(kept))
    targets = [kept[0], kept[5], rest[0], rest[3]]
    questions = asking(30, {25: targets, 10: [1]}, wrong=(25,))
    kinds = token_kinds(layer, 25, questions)
    assert [kinds[key] for key in targets] == ["found", "found", "lost", "lost"]
    other = token_kinds(layer, 25)
    assert [kinds[i] for i in range(30) if i not in targets] == [other[i] for i in range(30) if i not in targets]
    plain, coloured = (printed(how, layer, 25, questions) for how in (False, True))
    for key, mark in zip(targets, ["[*w{}*]", "[*w{}*]", "(*w{}*)", "(*w{}*)"], strict=True):
        assert f" {mark.format(key)} " in plain.replace("\n", " ")
    styles = {key: re.search(rf"(\x1b\[[0-9;]*m) ?w{key}\x1b", coloured) for key in targets}
    assert all(styles.values())
    found, lost = ({styles[key][1] for key in some} for some in (targets[:2], targets[2:]))  # type: ignore[index]
    assert len(found) == len(lost) == 1 and found != lost
    assert f"target 'w{kept[0]}' at {kept[0]}: selected, rank 1 of 9" in plain
    assert f"target 'w{rest[0]}' at {rest[0]}: not selected" in plain
    assert "asked is 'a25'; the model answers 'no', which is wrong" in plain
    # Words stand apart, also where the past is cut; and the legend names the marks of a task alone.
    monkeypatch.setattr("dsabench.cli.views.selection_text.BEFORE", 5)
    assert re.search(r"^\S*w20\S* \S*w21\S* ", printed(False, layer, 25, questions), re.M)
    assert "[*word*] target, selected" in plain
    assert "target" not in printed(False, layer, 25) + printed(True, layer, 25)
