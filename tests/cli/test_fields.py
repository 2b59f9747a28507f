"""`dsabench fields`: every field of a config with what it takes, its default and its meaning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import Shell

from dsabench.errors import SpecError
from dsabench.guide.topics import pages
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.field_list import built_in_fields, choose, sections

EXAMPLE = shipped_configs()["seed"].parent / "custom_attention" / "sweep.yaml"
FOUND = sections()
PATHS = list(dict.fromkeys(field.path for fields in FOUND.values() for field in fields))


def test_all_names_fit_one_screen(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = shell("fields")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 42 and max(map(len, lines)) <= 80
    words = set(re.findall(r"[\w.]+", out))
    assert all(any(path.endswith(word) for word in words) for path in PATHS)


def test_the_command_and_the_page_of_the_guide_say_the_same(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, what it takes, default and meaning of every field."""
    monkeypatch.setenv("COLUMNS", "80")
    out = " ".join(shell("fields", "*")[1].split())
    page = " ".join(pages()["fields"].text.split())
    assert len(PATHS) > 70
    for fields in FOUND.values():
        for field in fields:
            assert f"`{field.path}`" in page and field.meaning in page and field.takes in page
            start = f" {field.path} = {field.default}" if field.default else f" {field.path}"
            assert start in out and field.meaning in out and f"Takes {field.takes}." in out, field.path


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("train.steps", ["train.steps"]),
        (
            "TOP_K",
            ["attention.top_k_ratio", "attention.top_k", "attention.top_k_schedule", "attention.top_k_blocks"],
        ),
        ("model.n_*", ["model.n_layers", "model.n_heads", "model.n_kv_heads", "model.n_experts"]),
        ("*.dropout", ["model.dropout"]),
        ("see?", ["seed"]),
    ],
)
def test_a_filter_is_a_part_or_a_pattern(shell: Shell, pattern: str, wanted: list[str]) -> None:
    found = json.loads(shell("fields", pattern, "--json")[1])
    assert list(dict.fromkeys(field["path"] for field in found)) == wanted


@pytest.mark.parametrize("name", ["stpes", "train.step5", "attention.topk", "indxer.n_heads"])
def test_a_filter_without_a_field_names_the_nearest(shell: Shell, name: str) -> None:
    code, out, err = shell("fields", name)
    assert (code, out) == (2, "")
    near = re.findall(r"[\w.]+", err.partition("did you mean ")[2])
    assert near and set(near) & set(PATHS)


@given(st.text(max_size=12))
def test_any_filter_chooses_by_path_or_is_refused(pattern: str) -> None:
    try:
        chosen = choose(FOUND, pattern)
    except SpecError as error:
        assert repr(pattern) in str(error)
    else:
        plain = not set(pattern) & set("*?[")
        assert all(fields and (not plain or pattern.casefold() in fields[0].path) for fields in chosen.values())


@pytest.mark.parametrize("field", [one for one in built_in_fields() if one.choices], ids=lambda one: one.path)
def test_what_a_field_lists_as_its_choices_is_taken(field) -> None:  # type: ignore[no-untyped-def]
    """By `--set`, of an attention or a task that has the field."""
    for choice in field.choices:
        sweep = load_sweep("quick")
        if field.path.startswith("attention.") and field.owners and field.path != "attention.kind":
            sweep.set("attention.kind", field.owners[0], "")
        if field.path.startswith("data.task."):
            sweep.set("data.source", f"task:{field.owners[0] if field.owners else 'recall'}", "")
        sweep.set(field.path, {"true": True, "false": False}.get(choice, choice), "")
        if choice == "hybrid":  # it is made of layers, which have no default
            sweep.set("attention.layers", ["dense", "dsa"], "")
        assert sweep.runs()


def test_a_plugin_of_the_config_shows_its_settings(shell: Shell) -> None:
    assert "half_life" not in shell("fields", "attention", "--json")[1]
    found = json.loads(shell("fields", "half_life", "--config", str(EXAMPLE), "--json")[1])
    assert found == [
        {
            "path": "attention.half_life",
            "takes": "a number above 0",
            "choices": [],
            "default": 8.0,
            "meaning": "Tokens after which the first head has forgotten half; each further head remembers twice as "
            "long.",
            "only_for": ["my_attention"],
            "section": "The attention",
        }
    ]
    code, _, err = shell("fields", "half_life", "--config", str(EXAMPLE), "--no-plugins")
    assert code == 2 and "my_attention.py" in err


def test_a_narrow_terminal_breaks_between_words(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = shell("fields", "train.*")[1].splitlines()
    assert max(map(len, lines)) <= 40
