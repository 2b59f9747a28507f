"""`--where`: what it means, what a missing value does, and that it is read and never executed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.analysis.where import MAX_LENGTH, matching
from dsabench.errors import ScopeError

RUNS = pd.DataFrame(
    {
        "run_id": pd.array(["a", "b", "c", "d.e"], dtype="string"),
        "attention": pd.array(["dense", "dsa", "dsa", None], dtype="string"),
        "length": pd.array([64, 128, 256, 256], dtype="Int64"),
        "val_loss": [4.5, 4.25, math.nan, math.inf],
        "leak": pd.array([None, True, False, None], dtype="boolean"),
        "error": pd.array([None, None, 'it said "no." and ended', "a.b"], dtype="string"),
        "attention.top_k": pd.array([None, 64, 32, None], dtype="Int64"),
        "attention.top_k_ratio": [math.nan, 0.5, 0.25, math.nan],
        "attention.indexer.loss": pd.array([None, "kl", "none", None], dtype="string"),
        "data.max_tokens": [math.nan] * 4,
        "environment.data notes-1": pd.array(["x", "y", "x", "x"], dtype="string"),
        "engine.deterministic": pd.array(["auto", "true", "false", "auto"], dtype="string"),
        "updated": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"]).tz_localize("UTC"),
    }
)

MEANINGS = {
    "length == 256": "cd",
    "length==256": "cd",
    "length != 256": "ab",
    "64 < length <= 256": "bcd",
    "256 > length": "ab",
    "length in [64, 128]": "ab",
    "length in (64,)": "a",
    "length not in [64, 128]": "cd",
    "length in []": "",
    "attention == 'dsa' and length == 256": "c",
    'attention == "dsa" or length == 64': "abc",
    "not attention == 'dsa'": "ad",
    "(attention == 'dsa') & (length > 128) | (length == 64)": "ac",
    "~(length == 256)": "ab",
    # spec fields by their paths
    "attention.top_k == 64": "b",
    "attention.top_k_ratio < 0.5": "c",
    "attention.indexer.loss == 'kl'": "b",
    "`attention.indexer.loss` == 'kl'": "b",
    "`environment.data notes-1` == 'x'": "acd",
    "attention.top_k_ratio in [0.25, 0.5] and attention.top_k > 32": "b",
    # text with dots, quotes and column names in it
    "run_id == 'd.e'": "d",
    "error == 'a.b'": "d",
    "error == 'it said \"no.\" and ended'": "c",
    'error == "it said \\"no.\\" and ended"': "c",
    "error == 'attention.top_k'": "",
    "error == '`length`'": "",
    "'no.' in error": "c",
    "'no.' not in error": "abd",
    "'\\d' in error": "",
    "error == '@x __class__'": "",
    # a missing value is equal to nothing and not true; != and not keep it
    "val_loss == val_loss": "abd",
    "val_loss != 4.5": "bcd",
    "val_loss > 4.3": "ad",
    "not val_loss > 4.3": "bc",
    "val_loss < 1e400": "ab",
    "val_loss == 1e999": "d",
    "leak": "b",
    "not leak": "acd",
    "leak == True": "b",
    "leak == false": "c",
    "leak != true": "acd",
    "val_loss == null": "c",
    "val_loss != None": "abd",
    "error is None": "ab",
    "error is not None and length == 256": "cd",
    "attention.top_k in [null, 32]": "acd",
    "attention.top_k not in [32]": "abd",
    "data.max_tokens == 'x' or data.max_tokens > 3": "",
    "data.max_tokens == null": "abcd",
    "data.max_tokens": "",
    # arithmetic
    "length / 4 == 32": "b",
    "length // 100 % 2 == 0 and length - 6 != 2 * 125": "a",
    "-length < -(100 + 28)": "cd",
    "attention.top_k * 2 == length": "b",
    "length / 0 == 1 or length % 0 == 1": "",
    "attention.top_k + 1 == null": "ad",
    "val_loss - val_loss == 0": "ab",
    "1e308 * 10 * length > 3": "abcd",
    # times
    "updated >= '2026-01-02'": "bcd",
    "updated < '2026-01-02T00:00:00+01:00'": "a",
    "'2026-01-02' < updated < '2026-01-04'": "c",
    "updated == updated": "abcd",
    "1 == 1": "abcd",
    "True": "abcd",
    " length == 64\n": "a",
    "engine.deterministic == 'true'": "b",
}


@pytest.mark.parametrize("query", MEANINGS)
def test_a_condition_means_what_it_says(query: str) -> None:
    kept = matching(RUNS, query)
    assert "".join(kept["run_id"].str[0]) == MEANINGS[query]
    pd.testing.assert_frame_equal(kept, RUNS.loc[kept.index])


REFUSED = {
    "lenght == 256": "no column lenght; did you mean length?",
    "attention == dsa": 'no column dsa; text is written in quotes: "dsa"',
    "attention.top_k_rato > 0.3": "no column attention.top_k_rato; did you mean attention.top_k_ratio?",
    "`no such` == 1": "no column no such",
    "length = 256": "a comparison is written ==",
    "length == 64 && leak": "write `and` and `or`",
    "length <> 64": "write !=",
    "!leak": "write `not`",
    "length == 64 & length == 64": "write `and` and `or`",
    "length == '256'": "length (a number) cannot be compared with '256' (text)",
    "attention == 3": "attention (text) cannot be compared with 3 (a number)",
    "leak == 1": "leak (true or false) cannot be compared with 1 (a number)",
    "leak < True": "leak has no order",
    "val_loss < null": "null has no order",
    "engine.deterministic == True": "engine.deterministic (text) cannot be compared with True (true or false)",
    "length == [64]": "write `in`",
    "length in 64": "64 is no list",
    "length in [64, 'x']": "'x' (text) cannot be compared with length (a number)",
    "updated > 'yesterday'": "'yesterday' is not a time; expected one such as '2026-01-31 12:00'",
    "updated > 3": "updated (a time) cannot be compared with 3",
    "length": "length is not true or false of a run; expected a comparison such as length == 256",
    "length and leak": "length is not true or false",
    "'x'": "is not true or false",
    "null": "is not true or false",
    "attention + 'x' == 'dsax'": "attention is not a number to compute with",
    "'a' * 3 == 'aaa'": "is not a number to compute with",
    "leak + 1 == 1": "leak is not a number to compute with",
    "": "cannot be read",
    "length ==": "cannot be read",
    "(length == 64": "cannot be read",
    "length == 64)": "cannot be read",
    "'open": "cannot be read",
    "length == 64; leak": "cannot be read",
    "\0": "cannot be read",
    "length == 0x": "cannot be read",
    "not " * 400 + "leak": "cannot be read",
    "(" * 500 + "leak" + ")" * 500: "cannot be read",
    "1 + " * 450 + "1 == length": "cannot be read",
    "9" * 5000 + " == length": "at most 2000 are accepted",
}

HOSTILE = [
    "@x", "@pd.eval('1')", "__class__", "run_id.__class__ == 1", "().__class__ == 1", "val_loss.map(print)",
    "print(1)", "length.sum() > 3", "val_loss.values == 3", "__import__('os').system('true') == 0",
    "[x for x in length]", "length in [x for x in (1,)]", "lambda: 0", "(lambda: 1)() == 1", "length if leak else leak",
    "length[0] == 64", "length == {64: 1}", "f'{length}' == 'x'", "f'{print(1)}' == 'x'", "(x := 3) == 3", "x = 3",
    "await length", "(yield) == 3", "*length, 1 == 1", "9 ** 9 ** 9 ** 9 == length", "1 << 99999999 == length",
    "length @ length == 3", "length | 3 == 3", "length ^ 3 == 3", "b'x' == run_id", "1j == length", "... == length",
    "length in {64: 1}", "length in range(9)", "del length", "import os", "True.real == 1", "'x'.upper() == 'X'",
    "`__class__` == 1", "__column_0 == 1",
    "run_id == 'a' if 1 else leak",
]  # fmt: skip


@pytest.mark.parametrize("query", REFUSED)
def test_a_mistake_gets_one_message_that_says_what_to_write(query: str) -> None:
    with pytest.raises(ScopeError) as caught:
        matching(RUNS, query)
    message = str(caught.value)
    assert REFUSED[query] in message
    assert message.startswith("--where") and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("query", HOSTILE)
def test_nothing_in_a_condition_is_called(query: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ScopeError):
        matching(RUNS, query)
    assert capsys.readouterr() == ("", "")


def test_a_comment_is_no_way_out() -> None:
    assert list(matching(RUNS, "length == 64 # or True")["run_id"]) == ["a"]


def test_an_escape_in_a_text_is_no_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        matching(RUNS, r"'\d' in error or error == '\w'")
    assert seen == []


def test_a_condition_on_no_runs() -> None:
    assert matching(RUNS.head(0), "length == 3 and 1 == 1").empty
    assert matching(RUNS.head(0), "1 == 1").empty


def test_the_longest_condition_is_read() -> None:
    query = "length == 64 or " * 200
    query = query[:MAX_LENGTH].rpartition(" or ")[0]
    assert list(matching(RUNS, query)["run_id"]) == ["a"]


words = st.sampled_from(
    [
        *RUNS.columns, *HOSTILE, "==", "!=", "<", ">=", "in", "not in", "not", "and", "or", "is", "(", ")", "[", "]",
        ",", "64", "4.5", "'dsa'", '"', "'", "`", "null", "true", "+", "-", "*", "/", "//", "%", ".", "&", "|", "~",
        "@", "\\", "'2026-01-01'", "lambda", ":", "\n", "\t", "\u00e9", "\ud800", "\x1b",
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(query=st.one_of(st.lists(words, max_size=12).map(" ".join), st.text(max_size=40)))
def test_any_text_selects_rows_or_is_refused(query: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            kept = matching(RUNS, query)
        except ScopeError as error:
            assert str(error).startswith("--where")
        else:
            assert set(kept.index) <= set(RUNS.index)


numbers = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, math.inf]))
tests = st.recursive(
    st.builds(
        lambda left, op, right: f"({left} {op} {right})",
        st.sampled_from(["x", "y", "x + y", "x * 2", "-y", "1"]),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.sampled_from(["x", "y", "0", "2.5", "y - x"]),
    ),
    lambda inner: st.one_of(
        inner.map(lambda a: f"(not {a})"), st.tuples(inner, inner, st.sampled_from(["and", "or"])).map(
            lambda abc: f"({abc[0]} {abc[2]} {abc[1]})"
        )
    ),
    max_leaves=4,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(query=tests, rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_it_agrees_with_python_where_missing_is_nan(query: str, rows: list[tuple[Any, Any]]) -> None:
    frame = pd.DataFrame({"x": [r[0] for r in rows], "y": [r[1] for r in rows]}).astype("float64")
    wanted = []
    for x, y in rows:
        names = {"x": math.nan if x is None else float(x), "y": math.nan if y is None else float(y)}
        wanted.append(bool(eval(query, {}, names)))
    assert matching(frame, query).index.tolist() == [i for i, kept in enumerate(wanted) if kept]
