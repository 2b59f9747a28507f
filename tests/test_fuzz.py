"""Mutated files through the public readers; `DSABENCH_FUZZ=10000 pytest tests/test_fuzz.py` for more."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import pytest

COUNT, SEED = (int(os.environ.get(f"DSABENCH_FUZZ{name}", default)) for name, default in (("", 90), ("_SEED", 0)))


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_mutated_file_is_read_or_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSABENCH_DEBUG", raising=False)
    monkeypatch.delenv("DSABENCH_STORE", raising=False)
    fuzzed = fuzz.Fuzz(tmp_path, SEED)
    for name in fuzz.names(COUNT):
        if name.startswith(kind):
            try:
                fuzzed.example(name)
            except (Exception, fuzz.TooSlowError) as error:
                pytest.fail(f"{name}: {error!r}; python tests/support/fuzz.py --seed {SEED} --only {name} shows where")
    assert fuzzed.outcomes["read"] and fuzzed.outcomes["refused"]


def test_the_fuzzer_sees_what_must_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzed = fuzz.Fuzz(tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.05)

    def stray(draw: object) -> None:
        (tmp_path / "stray.txt").touch()

    def endless(draw: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzzed, "_run", endless)
    with pytest.raises(fuzz.TooSlowError):
        fuzzed.example("run-0")
    monkeypatch.setattr(fuzzed, "_spec", lambda draw: fuzzed._read(lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        fuzzed.example("spec-0")
    monkeypatch.setattr(fuzzed, "_metrics", stray)
    with pytest.raises(fuzz.Failure, match="beside the store"):
        fuzzed.example("metrics-0")
