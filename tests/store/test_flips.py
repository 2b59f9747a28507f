"""A flipped bit anywhere in a store is noticed, or changes nothing that is read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from stored_pair import values

import dsabench
from dsabench.audit import gate
from dsabench.engine.step import TrainStep
from dsabench.errors import StoreError
from dsabench.spec.run import validate
from dsabench.store import SweepRecord, load_lists, load_metrics, load_runs, read_run, write_sweep
from dsabench.store.curves import load_curves
from dsabench.store.record_files import read_record
from dsabench.store.sealed_cache import read_sealed
from dsabench.store.verification import checkpoint_damage
from dsabench.sweeps import single_run

CACHES = ("index.parquet", ".index.json.gz", ".index.seal", "curves.parquet", ".curves.seal")
SEALED = {"index.parquet": ".index.seal", ".index.json.gz": ".index.seal", "curves.parquet": ".curves.seal"}
"""The caches that are read by `read_sealed` alone, and their seals."""
STATES = {"done": 1, "failed": 2, "interrupted": 3, "killed": 4}
"""How a run ended, and its seed."""


def spec_of(corpus: Path, seed: int) -> Any:
    return validate(values(corpus, seed=seed, engine={"device": "cpu", "checkpoint_every": 3}))


def trained(corpus: Path, store: Path, seed: int, end: type[BaseException] | None) -> None:
    """Train a run that `end` ends at its eighth step."""
    honest, left = TrainStep._compute, [8]

    def compute(self: TrainStep, stage: Any) -> Any:
        left[0] -= 1
        if end is not None and left[0] == 0:
            raise end("for a test")
        return honest(self, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "_compute", compute)
        if end is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                single_run.train(spec_of(corpus, seed), store, progress=False)
        else:
            single_run.train(spec_of(corpus, seed), store, progress=False)


def kill(folder: Path) -> None:
    """Make an interrupted run one whose process is gone without a word: its record is that of its beginning."""
    record = read_run(folder.parent, folder.name)
    running = record.model_copy(update={"status": "running", "summary": {}, "seal": None})
    (folder / "run.json").write_bytes(running.to_json())


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    store = tmp_path_factory.mktemp("flips") / "runs"
    ends = {"failed": RuntimeError, "interrupted": KeyboardInterrupt, "killed": KeyboardInterrupt}
    for state, seed in STATES.items():
        trained(corpus, store, seed, ends.get(state))
    kill(folder_of(store, "killed"))
    write_sweep(store, SweepRecord(id="s", spec={}, run_ids=[folder_of(store, "done").name], environment={}))
    yield store
    gate.forget()


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    views(tmp_path / "runs")
    return tmp_path / "runs"


def folder_of(store: Path, state: str) -> Path:
    (found,) = store.glob(f"dense-L16-s{STATES[state]}-*")
    return found


def views(store: Path) -> dict[str, Any]:
    """Everything that is read from a store, or the StoreError that says why it is not."""

    def read(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except StoreError as error:
            assert "\n" not in str(error)
            return error

    runs = read(lambda: load_runs(store))
    found = {"runs": runs, "sweep": read(lambda: read_record(store / "sweeps/s.json", SweepRecord).model_dump())}
    for kind in ("eval", "train"):
        found |= {kind: read(lambda kind=kind: load_curves(store, kind=kind).frame)}
        found |= {f"{kind} damage": read(lambda kind=kind: load_curves(store, kind=kind).damaged)}
    for name in () if isinstance(runs, StoreError) else runs["run_id"]:
        found[f"metrics {name}"] = read(lambda name=name: load_metrics(store, [name]))
        found[f"lists {name}"] = read(lambda name=name: load_lists(store, [name]))
        found[f"record {name}"] = read(lambda name=name: read_run(store, name).model_dump())
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pd.DataFrame) and isinstance(b, pd.DataFrame):
        try:
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        except AssertionError:
            return False
        return True
    return repr(a) == repr(b)


def noticed(now: dict[str, Any], name: str) -> bool:
    """Whether an error names the file, or the row of a run says what is wrong with it."""
    if any(isinstance(value, StoreError) and name in str(value) for value in now.values()):
        return True
    runs = now["runs"]
    bad = runs[runs["status"].isin(["damaged", "unreadable"])]
    return len(bad) == 1 and bool(bad["error"].notna().all())


def refused(path: Path) -> bool:
    """Whether this is a cache that its one reader refuses: it is made anew, which the fast version looks at."""
    if path.name not in SEALED:
        return False
    try:
        read_sealed(path.parent, SEALED[path.name], path.name)
    except ValueError:
        return True
    return False


def flips(
    path: Path, store: Path, every: int, seed: int, clean: Callable[[], None], all_views: bool = True
) -> list[str]:
    """Flip a bit of every `every`-th byte of a file, from a random one on; what was neither noticed nor harmless.

    all_views: whether all that is read is looked at after flips in a cache that is refused, too: 0.1 s each.
    """
    draw, content, before = random.Random(seed), path.read_bytes(), views(store)
    silent = []
    for place in range(draw.randrange(every), len(content), every):
        bit = draw.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        clean()
        if not all_views and refused(path):
            continue
        now = views(store)
        changed = [key for key in before if key not in now or not same(before[key], now[key])]
        if changed and not noticed(now, path.name):
            silent.append(f"bit {bit} of byte {place} of {path.name}: {changed}")
    path.write_bytes(content)
    clean()
    after = views(store)
    assert all(same(before[key], after[key]) for key in before), "what was put back is read as it was"
    return silent


def forget_caches(store: Path) -> Callable[[], None]:
    def forget() -> None:
        for name in CACHES:
            (store / name).unlink(missing_ok=True)

    return forget


FILES = {
    **{f"{state} run.json": lambda store, state=state: folder_of(store, state) / "run.json" for state in STATES},
    **{f"{state} metrics": lambda store, state=state: folder_of(store, state) / "metrics.jsonl" for state in STATES},
    **{name: lambda store, name=name: store / name for name in (*CACHES, "store.json", "sweeps/s.json")},
}
TRIED = 10
"""Bytes of a file that every run of the suite flips; all of them in the slow version (half an hour)."""


def read_with_flips(store: Path, file: str, most: int, cached: bool, all_views: bool = True) -> None:
    path = FILES[file](store)
    if file == "killed metrics":  # up to the last checkpoint: what follows nobody vouches for, and resuming drops it
        saved = json.loads((path.parent / "checkpoint/seal.json").read_bytes())
        path.write_bytes(path.read_bytes()[: saved["metrics"]["size"]])
    if file.endswith("metrics"):
        assert path.stat().st_size > 500
    clean = (lambda: None) if cached else forget_caches(store)
    every = max(1, path.stat().st_size // most)
    assert flips(path, store, every, len(file), clean, all_views) == []


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "anew"])
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_noticed_or_changes_nothing(store: Path, file: str, cached: bool) -> None:
    if cached or file not in CACHES:
        read_with_flips(store, file, TRIED, cached)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_of_any_byte_is_noticed_or_changes_nothing(store: Path, file: str) -> None:
    read_with_flips(store, file, 10**9, cached=True, all_views=False)


@pytest.mark.parametrize("state", ["done", "interrupted", "killed"])
def test_a_flipped_bit_of_a_checkpoint_is_noticed_wherever_it_is(store: Path, state: str) -> None:
    folder = folder_of(store, state)
    record, draw, tried = read_run(store, folder.name), random.Random(7), 0
    assert checkpoint_damage(folder, record) == []
    for path in sorted((folder / "checkpoint").iterdir()):
        content = path.read_bytes()
        places = {*range(min(len(content), 60)), *draw.choices(range(len(content)), k=200)}
        for place in sorted(places):
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([content[place] ^ 1 << draw.randrange(8)]))
            said, tried = checkpoint_damage(folder, record), tried + 1
            layout_alone = path.name == "seal.json" and json_or_none(path) == json.loads(content)
            assert layout_alone or (len(said) == 1 and path.name in said[0]), (path, place, said)
            path.write_bytes(content)
    assert tried > (600 if state == "done" else 800)
    assert checkpoint_damage(folder, record) == []


def json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_damaged_weights_are_never_loaded(store: Path, file: str) -> None:
    name = folder_of(store, "done").name
    before = dsabench.load_model(store, name).state_dict()
    path = store / name / "checkpoint" / file
    content, draw = path.read_bytes(), random.Random(1)
    for place in (0, *draw.choices(range(len(content)), k=6), len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        with pytest.raises(StoreError, match=rf"{file}.*not what was written"):
            dsabench.load_model(store, name)
    path.write_bytes(content)
    again = dsabench.load_model(store, name).state_dict()
    assert all(torch.equal(again[key], before[key]) for key in before)


@pytest.mark.parametrize("state", ["interrupted", "killed"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["checkpoint/model.safetensors"], "resumes from the checkpoint before"),
        (["checkpoint/optimizer.safetensors"], "resumes from the checkpoint before"),
        (["checkpoint/state.json"], "resumes from the checkpoint before"),
        (["checkpoint/seal.json"], "resumes from the checkpoint before"),
        (["checkpoint/model.safetensors", "checkpoint.old/model.safetensors"], "begins anew"),
    ],
)
def test_a_run_with_a_damaged_checkpoint_ends_with_the_bits_of_one_that_was_not(
    store: Path, corpus: Path, tmp_path: Path, state: str, files: list[str], told: str
) -> None:
    folder, spec = folder_of(store, state), spec_of(corpus, STATES[state])
    calm = single_run.train(spec, tmp_path / "calm", progress=False)
    for name in files:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)
    said: list[str] = []
    assert single_run.train(spec, store, progress=False, notify=said.append).status == "done"
    (line,) = [one for one in said if "damaged" in one]
    assert folder.name in line and files[0].split("/")[1] in line and line.endswith(told)
    weights = [
        (where / calm.run_id / "checkpoint/model.safetensors").read_bytes() for where in (store, tmp_path / "calm")
    ]
    assert weights[0] == weights[1]
    left_out = ["seconds", "eval_seconds", "tokens_per_second"]
    ours, theirs = (load_metrics(where, [calm.run_id]) for where in (store, tmp_path / "calm"))
    pd.testing.assert_frame_equal(*(one.drop(columns=left_out, errors="ignore") for one in (ours, theirs)))
    assert not (folder / "checkpoint.old").exists()
