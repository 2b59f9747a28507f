"""Tables of the terminal: never wider than it, and what is not shown is named."""

from __future__ import annotations

import io
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from dsabench.cli.console import PlainConsole, lines_of_words
from dsabench.cli.safe_text import printable
from dsabench.cli.views.text_table import (
    MARK,
    Cell,
    Column,
    Row,
    fitted,
    footnote_lines,
    print_table,
)

WORDS = st.text(st.characters(codec="utf-8"), max_size=14) | st.sampled_from(
    ["-", "1.234+-0.005", "uml\xe4ut", "\u5bbd"]
)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join) | st.text("ab/-1.", max_size=300)


class Made(NamedTuple):
    """A table to be fitted."""

    columns: list[Column]
    rows: list[list[str]]
    width: int


@st.composite
def tables(draw: st.DrawFn) -> Made:
    n = draw(st.integers(1, 14))
    columns = [
        Column(
            heading=f"heading{i} " + draw(st.sampled_from(["", "of several words, unit"])),
            short=draw(st.sampled_from(["", f"h{i}", f"heading{i}\nof"])),
            left=draw(st.booleans()),
            drop=draw(st.integers(0, 3)),
            least=draw(st.integers(0, 30)),
            shorten=draw(st.sampled_from(["cut", "wrap", "number"])),
        )
        for i in range(n)
    ]
    rows = draw(st.lists(st.lists(TEXTS, min_size=n, max_size=n) | st.just([]), max_size=4))
    return Made(columns, rows, draw(st.integers(60, 250)))


@given(made=tables())
@settings(deadline=None, max_examples=300)
def test_no_line_is_wider_than_the_terminal(made: Made) -> None:
    table = fitted(made.columns, made.rows, made.width)
    assert max((cell_len(line.plain) for line in table.lines), default=0) <= made.width


@given(made=tables())
@settings(deadline=None, max_examples=300)
def test_what_is_not_there_whole_is_named(made: Made) -> None:
    footnotes: dict[str, int] = {}
    table = fitted(made.columns, made.rows, made.width, footnotes=footnotes)
    shown = "\n".join([*(line.plain for line in table.lines), *footnote_lines(footnotes)])
    assert not table.cut or MARK in shown
    for i, column in enumerate(made.columns):
        if column.shorten != "wrap" and column.heading not in [*table.left_out, *table.cut]:
            assert all(printable(row[i]).rstrip() in shown for row in made.rows if row)


@given(
    rows=st.lists(st.tuples(st.just("1.25"), st.lists(WORDS, max_size=40).map(" ".join)), max_size=4), data=st.data()
)
@settings(deadline=None, max_examples=100)
def test_a_wrapped_text_has_each_word_whole(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    width = data.draw(st.integers(100, 250))  # the longest word: 14 characters, escaped
    table = fitted([Column("n"), Column("text", left=True, shorten="wrap", least=10)], rows, width)
    shown = "\n".join(line.plain for line in table.lines).split()
    assert not table.cut and not table.left_out
    assert [word for word in shown[3:] if word != "1.25"] == [
        word for _, text in rows for word in printable(text).split() if word != "1.25"
    ]


@given(made=tables())
@settings(deadline=None, max_examples=100)
def test_a_column_goes_before_a_more_important_one(made: Made) -> None:
    left_out = fitted(made.columns, made.rows, made.width).left_out
    gone = {column.drop for column in made.columns if column.heading in left_out}
    stays = {column.drop for column in made.columns if column.heading not in left_out}
    assert not (gone - {0}) or min(gone - {0}) > max(stays)
    assert 0 not in gone or not (stays - {0})


@given(made=tables())
@settings(deadline=None, max_examples=100)
def test_without_a_bound_all_is_there_in_a_line_a_row(made: Made) -> None:
    table = fitted(made.columns, made.rows, 1_000_000)
    assert not table.left_out and not table.cut
    lines = [line.plain for line in table.lines]
    assert len(lines) == 2 + len(made.rows)
    assert all(column.heading.strip() in lines[0] for column in made.columns)
    for row, line in zip(made.rows, lines[2:], strict=True):
        assert all(printable(text).rstrip() in line for text in row)


NAMES = ("dense", "DSA k=0.5L", "DSA k=0.25L, learning rate 1e-3", "DSA k=0.25L, random LEAK")
COLUMNS = (
    Column("length"),
    Column("attention", left=True, shorten="number", least=9),
    Column("loss, nats a token", short="loss,\nnats"),
    Column("made at", drop=2),
    Column("path", left=True, least=10, drop=1),
)


def text_of(width: int | None, **settings: object) -> str:
    rows = [[str(i), name, "1.234", "2026-01-01 00:00:00", "/a/long/path/" + "x" * 40] for i, name in enumerate(NAMES)]
    file = io.StringIO()
    console = PlainConsole(file=file, width=width, force_terminal=width is not None, color_system=None)
    console.soft_wrap = width is None
    print_table(console, COLUMNS, rows, **settings)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_narrow_terminal_has_numbers_and_says_what_is_left_out() -> None:
    text = text_of(40)
    assert "DSA [1]" in text and "[1] DSA k=0.5L" in text and "[3] LEAK" in text
    assert "1 column left out at 40 columns: made at" in text.replace("\n", " ")
    assert "cut at 40 columns, marked ...: path" in text.replace("\n", " ")
    assert "--json shows them" in text.replace("\n", " ")
    assert "/a/" in text and "x" * 40 not in text


@pytest.mark.parametrize("width", [200, None])
def test_a_wide_terminal_and_a_pipe_have_it_all(width: int | None) -> None:
    text = text_of(width)
    assert all(name in text for name in NAMES) and "[1]" not in text
    assert "loss, nats a token" in text and "x" * 40 in text and "left out" not in text
    assert text.isascii() == (width is None)


def test_tables_share_the_numbers_of_names() -> None:
    footnotes: dict[str, int] = {}
    first, second = text_of(40, footnotes=footnotes), text_of(60, footnotes=footnotes)
    assert "DSA [1]" in first and "DSA [1]" in second and "[1] DSA k" not in first + second
    assert footnote_lines(footnotes) == ["[1] DSA k=0.5L", *(f"[{i}] {NAMES[i]}" for i in (2, 3))]


def test_cells_and_rows_have_styles_and_lines_below() -> None:
    rows = [Row(["1", Cell("worse", "red")]), Row(["2", "failed"], style="bold", below=["error: " + "word " * 30])]
    lines = fitted([Column("n"), Column("verdict", left=True)], rows, 60).lines
    assert [span.style for span in lines[2].spans] == ["red"] and lines[3].style == "bold"
    assert len(lines) == 7 and all(line.plain.startswith("    ") for line in lines[4:])


def test_a_text_cannot_command_the_terminal() -> None:
    line = fitted([Column("n")], [["a\x1b[2Jb\nc"]], 80).lines[2].plain
    assert "\x1b" not in line and "\\x1b[2Jb\\nc" in line


@given(text=st.lists(WORDS.map(printable), max_size=30).map(" ".join), width=st.integers(20, 120))
def test_prose_is_broken_between_words_only(text: str, width: int) -> None:
    lines = [line.plain for line in lines_of_words(Text(text), width)]
    assert " ".join(lines).split() == text.split()
    longest = max(map(cell_len, text.split()), default=0) + len(text) - len(text.lstrip())
    assert all(cell_len(line.rstrip()) <= max(width, longest) for line in lines)
