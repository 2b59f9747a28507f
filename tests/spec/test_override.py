"""The values of `--set`: a field of type text takes them to the letter, whatever YAML would make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsabench.attention import registry
from dsabench.cli.options import overridden
from dsabench.errors import SpecError
from dsabench.spec.override import parse_override, unquoted

PLUGIN = """
from typing import Annotated, Literal

from dsabench.attention import Attention, AttentionSpec, register
from pydantic import Field


class OverrideTextsSpec(AttentionSpec):
    kind: Literal["override_texts"] = "override_texts"
    word: str = "a"
    perhaps: str | None = None
    short: Annotated[str, Field(min_length=1)] | None = None
    choice: Literal["some", "null", "1e-3"] | None = None
    words: list[str] = Field([])
    number_or_text: int | str = 0
    switch: Literal["auto"] | bool = "auto"
    number: float = 1.0


@register
class OverrideTexts(Attention):
    spec_class = OverrideTextsSpec
    kind = "override_texts"

    def __init__(self, spec, model):
        super().__init__()

    def forward(self, x_BTD, context):
        raise NotImplementedError

    def flops(self, stage):
        return 0
"""

TEXT_FIELDS = ["data.source", "data.text_column", "data.tokenizer", "data.split", "train.schedule", "engine.device"]
TRICKY = [
    "", " ", "null", "~", "123", "1e-3", "true", "no", "0x10", "1_000", "2026-01-01", "path:D/t #2", "a: b", "a #b",
    "# a", "- x", "? x", "[a]", "{a: b}", "[", "{", "&a", "*a", "!t", "%x", "@x", "`x", "|", ">", "a\nb", "a\tb", "\t",
    " a ", "a=b", "==", "\\n", "'", '"', "it's", "'it's'", '"a" and "b"', "'a' 'b'", '"a" # "b"', '"\\q"', "\x1b[31m",
    "\ud7ff", "\u2028", "<<", "...", "---", "---\na", "C:\\new\\texts",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(TRICKY)
bare = texts.filter(lambda text: unquoted(text) is None)


def single(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The kinds that know the plugin's settings."""
    path = tmp_path_factory.mktemp("plugin") / "override_texts.py"
    path.write_text(PLUGIN, encoding="utf-8")
    registry.kinds()
    before = registry.registered()
    overridden("quick", [f"plugins=[{path}]"], {}, {})
    yield ["dense", "override_texts"]
    registry.restore(before)


@pytest.mark.parametrize("field", TEXT_FIELDS)
@given(text=bare)
def test_text_is_taken_to_the_letter(field: str, text: str) -> None:
    assert parse_override(f"{field}={text}") == (field, text)


@pytest.mark.parametrize("field", TEXT_FIELDS)
@given(text=texts)
def test_what_is_wholly_quoted_is_the_text_inside(field: str, text: str) -> None:
    assert parse_override(f"{field}={single(text)}") == (field, text)
    assert parse_override(f"{field}={json.dumps(text)}") == (field, text)


@given(text=bare)
def test_a_plugins_text_is_taken_to_the_letter(plugin: list[str], text: str) -> None:
    assert parse_override(f"attention.word={text}", plugin)[1] == text
    for field in ("perhaps", "short", "choice"):
        assert parse_override(f"attention.{field}={text}", plugin)[1] == (None if text == "null" else text)


@given(text=texts)
def test_quotes_name_the_text_null_and_the_text_of_a_number(plugin: list[str], text: str) -> None:
    for field in ("perhaps", "short", "choice", "number_or_text", "switch"):
        assert parse_override(f"attention.{field}={single(text)}", plugin)[1] == text


@given(items=st.lists(texts.filter(str.isprintable), max_size=4))
def test_items_of_a_list_of_texts_are_texts(plugin: list[str], items: list[str]) -> None:
    listed = ", ".join(map(single, items))
    assert parse_override(f"attention.words=[{listed}]", plugin)[1] == items


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("words=[123, null, 1e-3, no, a b]", ["123", "null", "1e-3", "no", "a b"]),
        ("words=null", None),
        ("words=[a, {b: 1}]", ["a", {"b": 1}]),
        ("number_or_text=12", 12),
        ("number_or_text=1.5", "1.5"),
        ("number_or_text=a: b", "a: b"),
        ("number_or_text=[", "["),
        ("switch=true", True),
        ("switch=auto", "auto"),
        ("number=1e-3", 1e-3),
        ("number='1'", "1"),
        ("nothing=1", 1),
    ],
)
def test_other_types_are_read_as_yaml(plugin: list[str], text: str, value: Any) -> None:
    found = parse_override(f"attention.{text}", plugin)[1]
    assert (found, type(found)) == (value, type(value))


@given(text=texts)
@example("a: b: c")
def test_any_override_is_a_value_or_one_message(text: str) -> None:
    for field in (
        "train.steps",
        "plugins",
        "attention",
        "data",
        "data.task.n_pairs",
        "engine.deterministic",
        "x.y",
        text,
    ):
        try:
            parse_override(f"{field}={text}")
        except SpecError as error:
            assert str(error).startswith("--set ")


def test_flags_say_which_attention_a_field_is_of(tmp_path: Path, plugin: list[str]) -> None:
    for sets, fields in (
        (["attention.word=a: b"], {"--attention": ("attention.kind", "override_texts")}),
        (["attention.word=a: b", "attention.kind=override_texts"], {}),
    ):
        sweep = overridden("quick", sets, fields, {})
        assert sweep.base["attention"]["word"] == "a: b"
    axes = {"--attentions": ("attention.kind", ["dense", "override_texts"])}
    assert overridden("quick", ["attention.word=null"], {}, axes).base["attention"]["word"] == "null"
