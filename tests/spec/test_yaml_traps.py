"""What YAML reads otherwise than it was meant is one message with the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsabench.errors import SpecError
from dsabench.spec.config import load_sweep

TRAPS = {
    "base:\n  length: 64\n  train: {learning_rate: 0,001}\n": (3, "1 is not a field name; * write 0.001 for 0,001"),
    "base:\n  train: {steps: 5, learning_rate: 0,5, schedule: cosine}\n": (2, "write 0.5 for 0,5"),
    "base:\n  train: {steps: 1,000}\n": (2, "or no comma between thousands"),
    "base: {}\nladder:\n  a: {train.learning_rate: 0,1}\n": (3, "write 0.1 for 0,1"),
    "base: {}\nverdict: {margin: 0,02}\n": (2, "write 0.02 for 0,02"),
    "base:\n  train:\n    learning_rate: 0,001\n": (3, "train.learning_rate = '0,001' * did you mean 0.001?"),
    "base:\n  attention:\n    top_k_ratio: 50%\n": (3, "top_k_ratio = '50%' * did you mean 0.5?"),
    "base:\n  train:\n    steps: 1e3\n": (3, "train.steps = 1000.0 * did you mean 1000?"),
    "base:\n\ttrain:\n\t\tsteps: 3\n": (2, "indent with spaces, a tab is not accepted there"),
    "base:\n  train:\n  \tsteps: 3\n": (3, "indent with spaces"),
    "base:\n  length: 64\n  seed: 1\n  length: 32\n": (4, 'duplicate key "length" * keep one'),
    "base:\n  train: {steps: 1, steps: 2}\n": (2, 'duplicate key "steps"'),
    "base:\n  train: {steps: 1}\n  train: {warmup_steps: 2}\n": (3, 'duplicate key "train"'),
    "base: {}\naxes:\n  seed: [1..5]\n": (3, "seed = '1..5' is not accepted"),
    "base: {}\naxes:\n  seed: 1-5\n": (3, "accepted: a list of one or more values"),
    "base: {}\naxes:\n  seed: [1 2 3]\n": (3, "seed = '1 2 3' is not accepted"),
    "base:\n  length: '64'\n": (2, "length = '64' is not accepted"),
    "base:\n  length: 64 tokens\n": (2, "a whole number"),
    "base:\n  allow_leak: no\n": (2, "true or false"),
    "base:\n  train: {learning_rate: .nan}\n": (2, "learning_rate = nan is not accepted"),
    "base:\n  train:\n    steps:64\n    warmup_steps: 3\n": (4, "a space after the colon"),
    "base:\n  data:\n    source: path:a: b\n": (3, "quotes around text that holds ': '"),
    "base:\n  1: 2\n": (2, "1 is not a field name"),
    "base:\n  length: 3\n  ~: 2\n": (3, "None is not a field name"),
    "base:\n  ? [a, b]\n  : 3\n": (2, "is not a field name"),
    "base:\n  length: !!str 3\n": (2, "YAML tags"),
    "base:\n  train: &t {steps: 3}\n  model:\n    <<: *t\n": (3, "unknown field model.steps"),
    "base:\n  length:64\n": (1, "base must be a mapping"),
    "base: {}\naxes: []\n": (2, "axes must be a mapping"),
    "base: 0\n": (1, "base must be a mapping"),
    "axes: {}\nbase: false\n": (2, "base must be a mapping"),
    "base: {}\n---\nbase: {}\n": (2, "another document"),
}


@pytest.mark.parametrize("text", TRAPS)
def test_a_trap_is_one_message_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    line, words = TRAPS[text]
    with pytest.raises(SpecError) as caught:
        load_sweep(str(path)).runs()
    message = str(caught.value)
    where = path if line == 1 and text.count("\n") == 1 and "must" not in words else f"{path}:{line}"
    assert message.startswith(f"{where}") and message.count("\n") == 0
    assert all(part in message for part in words.split(" * ")), message


@given(whole=st.integers(0, 9999), rest=st.from_regex(r"[0-9]{1,6}", fullmatch=True), before=st.integers(0, 5))
def test_a_decimal_comma_in_braces_names_its_line_and_the_number(
    tmp_path_factory: pytest.TempPathFactory, whole: int, rest: str, before: int
) -> None:
    path = tmp_path_factory.mktemp("comma") / "my.yaml"
    comments = "# a comment, 1 of them\n" * before
    path.write_text(f"{comments}base:\n  train: {{learning_rate: {whole},{rest}}}\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_sweep(str(path))
    assert str(caught.value).startswith(f"{path}:{before + 2}: {int(rest)} is not a field name")
    assert f"write {whole}.{rest} for {whole},{rest}" in str(caught.value)


@pytest.mark.parametrize("number", ["1_000", "0o1750", "0x3e8", "1000"])
def test_other_ways_to_write_a_whole_number_are_that_number(tmp_path: Path, number: str) -> None:
    (tmp_path / "my.yaml").write_text(f"base:\n  train: {{steps: {number}}}\n", encoding="utf-8")
    assert load_sweep(str(tmp_path / "my.yaml")).first().train.steps == 1000
