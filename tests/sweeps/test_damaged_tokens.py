"""Tokens that are damaged on the disk while a run trains on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from single_runs import evals, spec_of

from dsabench import data as data_package
from dsabench.data import TokenData, checked_tokens, token_folder
from dsabench.data.checked_tokens import CheckedTokens
from dsabench.engine.sink import Update
from dsabench.errors import DataError
from dsabench.spec.run import RunSpec
from dsabench.store import read_run
from dsabench.sweeps.single_run import train


@pytest.fixture
def corpus_here(corpus: Path, tmp_path: Path) -> Path:
    return shutil.copytree(corpus, tmp_path / "corpus")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TokenData]:
    """Every prepared corpus, whose token files count as large ones of many small blocks."""
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_folder, "VERIFY_BYTES", 0)
    monkeypatch.setattr(checked_tokens, "BLOCK_BYTES", 128)
    found: list[TokenData] = []
    prepare = data_package.prepare

    def kept(*arguments: Any, **options: Any) -> Any:
        found.append(prepare(*arguments, **options))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(data_package, "prepare", kept)
    return found


def damage(data: TokenData, path: Path) -> int:
    """Flip a bit in each block of train.bin that was not used so far; gives their number."""
    tokens = data.train.tokens
    assert isinstance(tokens, CheckedTokens)
    fresh = np.flatnonzero(~tokens._checked_K).tolist()
    with path.open("r+b") as file:
        for block in fresh:
            file.seek(128 * block + 2)
            byte = file.read(1)[0]
            file.seek(128 * block + 2)
            file.write(bytes([byte ^ 1]))
    return len(fresh)


def damaging(
    opened: list[TokenData], cache: Path, also: Callable[[], object] = lambda: None
) -> Callable[[Update], None]:
    """An observer that damages, once, after the first steps, what the run is to read next."""
    done: list[int] = []

    def observe(update: Update) -> None:
        if update.step > 0 and not done:
            (path,) = cache.glob("tokens/*/train.bin")
            done.append(damage(opened[-1], path))
            assert done[0] > 20
            also()

    return observe


def small(corpus: Path) -> RunSpec:
    return spec_of(corpus, steps=12, tokens_per_step=64, eval_every=4, eval_tokens=64, log_every=4)


def test_a_run_whose_tokens_are_damaged_under_way_ends_with_the_same_records(
    corpus_here: Path, tmp_path: Path, opened: list[TokenData]
) -> None:
    spec, told = small(corpus_here), list[str]()
    right = train(spec, tmp_path / "undisturbed", progress=False)
    record = train(
        spec, tmp_path / "runs", progress=False, notify=told.append, observe=damaging(opened, tmp_path / "cache")
    )
    assert (record.status, record.run_id) == ("done", right.run_id)
    one, other = (evals(tmp_path / store, right.run_id) for store in ("undisturbed", "runs"))
    assert one.equals(other)
    assert [line for line in told if "anew" in line] == [told[-1]]
    assert told[-1].startswith("encoding 12 documents") and told[-1].endswith("the tokens in the cache are damaged")


def test_a_run_whose_text_is_gone_too_stops_and_goes_on_later(
    corpus_here: Path, tmp_path: Path, opened: list[TokenData]
) -> None:
    spec, away = small(corpus_here), tmp_path / "away"
    right = train(spec, tmp_path / "undisturbed", progress=False)
    spoil = damaging(opened, tmp_path / "cache", lambda: corpus_here.rename(away))
    with pytest.raises(DataError, match=r"damaged, and cannot be encoded anew now.*the same command goes on"):
        train(spec, tmp_path / "runs", progress=False, observe=spoil)
    assert read_run(tmp_path / "runs", right.run_id).status == "interrupted"
    away.rename(corpus_here)
    assert train(spec, tmp_path / "runs", progress=False).status == "done"
    one, other = (evals(tmp_path / store, right.run_id) for store in ("undisturbed", "runs"))
    assert one.equals(other)
