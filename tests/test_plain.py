"""Text and values made safe to print: nothing acts on a terminal, nothing breaks a JSON reader."""

import datetime
import json
import math
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsabench.plain import encodable, escaped, json_values, visible


@given(st.text(max_size=30))
def test_escaped_text_is_printable_and_keeps_its_content(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    if "\\" not in text:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@given(st.text(max_size=30))
def test_visible_text_cannot_act(text: str) -> None:
    shown = visible(text)
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
    assert not any(c in shown for c in "\x1b\r\n\t\x00\x9b\u202e\u2066\u2028")


def test_visible_leaves_what_is_harmless() -> None:
    assert visible("caf\u00e9 \u4f60\u597d <b>") == "caf\u00e9 \u4f60\u597d <b>"
    assert visible("\x1b[31m\n") == "\\x1b[31m\\n"


@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_any_text_can_be_made_one_that_utf_8_holds(text: str) -> None:
    assert encodable(text).encode().decode() == encodable(text)
    assert encodable("caf\u00e9 \ud800") == "caf\u00e9 \\ud800"


def test_a_space_of_another_script_is_text() -> None:
    assert visible("\u4f60\u3000\u597d") == "\u4f60\u3000\u597d"
    assert escaped("\u4f60\u3000\u597d") == "\u4f60\\u3000\u597d"


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf, np.float32("nan"), pd.NA, pd.NaT])
def test_what_is_not_known_is_null(missing: object) -> None:
    assert json_values({"a": [missing], "b": (missing, 1)}) == {"a": [None], "b": [None, 1]}


def test_json_values_are_those_of_json() -> None:
    values = {
        1: np.array([[1, 2]]),
        "b": np.bool_(True),
        "c": np.int64(3),
        "d": "text",
        "e": datetime.date(2024, 1, 2),
        "f": 0.5,
    }
    assert json_values(values) == {"1": [[1, 2]], "b": True, "c": 3, "d": "text", "e": "2024-01-02", "f": 0.5}
    json.dumps(json_values(values), allow_nan=False)
