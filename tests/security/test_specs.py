"""Hostile specs and values of --set: one clean error, and nothing is built."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from dsabench.errors import SpecError
from dsabench.spec.config import load_sweep
from dsabench.spec.override import parse_override

BILLION_LAUGHS = "a: &a [1]\n" + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text",
    [
        "base: !!python/object/apply:os.system ['touch canary']",
        "base: !!python/object/new:pathlib.Path [canary]",
        "!!python/name:os.system x: 1",
        "base: &a [*a]",
        "base: {<<: *nobody}",
        BILLION_LAUGHS,
        "[" * 100_000,
        "base: " + "{a: " * 5000,
        "base: {length: " + "9" * 10_000 + "}",
        "base: {length: .inf}",
        "base: {train: {learning_rate: .nan}}",
        "base: {plugins: [\"a\\0b\"]}",
        "base: {plugins: [~nobody_at_all/x.py]}",
        "base: {plugins: [" + "x" * 10_000 + "]}",
        "axes: {length: [" + "16," * 600_000 + "]}",
    ],
)  # fmt: skip
def test_a_hostile_spec_is_one_clean_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(SpecError):
        load_sweep(str(path)).runs()
    assert time.monotonic() - started < 30
    assert [found.name for found in tmp_path.iterdir()] == ["c.yaml"]


def test_a_set_value_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="tags"):
        parse_override("seed=!!python/object/apply:os.system ['touch canary']")
    assert not list(tmp_path.iterdir())
