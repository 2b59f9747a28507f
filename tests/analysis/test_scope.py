"""Which runs a command looks at, what it says of those it does not, and one clear message for a wrong choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resealed import write
from synthetic import experiment

from dsabench.analysis.scope import Scope, ScopeError, choose, look_at
from dsabench.errors import DsabenchError, StoreError
from dsabench.spec.verdict import VerdictSpec
from dsabench.store import load_runs
from dsabench.store.layout import make_store


def small(store: Path, sweep: str | None, **changes: Any) -> list[str]:
    settings = {"lengths": (64,), "seeds": (1, 2), "evaluations": 1, **changes}
    return experiment(store, sweep=sweep, **settings)


@pytest.fixture(scope="module")
def two_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old-1` of length 64 and `new-2` of length 128, the newer one with a margin of its own."""
    store = tmp_path_factory.mktemp("scope") / "runs"
    small(store, "old-1")
    small(store, "new-2", lengths=(128,), minutes=5, margin=0.05)
    return store


def lengths(scope: Scope) -> set[int]:
    return set(scope.runs["length"])


def test_the_newest_sweep_is_looked_at(two_sweeps: Path) -> None:
    scope = look_at(two_sweeps)
    assert (scope.title, lengths(scope), len(scope.runs)) == ("sweep new-2", {128}, 4)
    assert scope.verdict == VerdictSpec(margin=0.05)
    assert scope.sweep is not None and scope.sweep.id == "new-2"
    assert scope.notes == []
    assert list(scope.runs.index) == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(scope.runs, load_runs(two_sweeps).query("length == 128").reset_index(drop=True))


@pytest.mark.parametrize("name", ["old-1", "old", "o"])
def test_a_sweep_is_named_by_its_id_or_the_start_of_it(two_sweeps: Path, name: str) -> None:
    scope = look_at(two_sweeps, sweep=name)
    assert (scope.title, lengths(scope), scope.verdict.margin) == ("sweep old-1", {64}, 0.02)
    chosen = choose(two_sweeps, sweep=name)
    assert (chosen.title, chosen.total, list(chosen.runs["run_id"])) == ("sweep old-1", 4, list(scope.runs["run_id"]))


def test_an_exact_id_wins_over_longer_ones_and_an_ambiguous_start_names_them(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "ab", "abc")):
        small(tmp_path, name, minutes=i)
    assert look_at(tmp_path, sweep="ab").title == "sweep ab"
    for look in (look_at, choose):
        with pytest.raises(ScopeError, match=r"--sweep abcd: no such sweep in .*; there are: abc, ab, a$"):
            look(tmp_path, sweep="abcd")
    shutil.copy(tmp_path / "sweeps/abc.json", tmp_path / "sweeps/abd.json")
    record = json.loads((tmp_path / "sweeps/abc.json").read_text())
    write(tmp_path / "sweeps/abd.json", {**record, "id": "abd"})
    (tmp_path / "sweeps/ab.json").unlink()
    with pytest.raises(ScopeError, match=r"--sweep ab: 2 sweeps start with that: ab[cd], ab[cd]$"):
        look_at(tmp_path, sweep="ab")


def test_an_empty_start_names_no_sweep(tmp_path: Path) -> None:
    small(tmp_path, "only")
    with pytest.raises(ScopeError, match="no such sweep"):
        look_at(tmp_path, sweep="")  # --sweep "$UNSET"


def test_everything_is_the_whole_store(two_sweeps: Path) -> None:
    scope = look_at(two_sweeps, everything=True)
    assert (lengths(scope), len(scope.runs), scope.sweep) == ({64, 128}, 8, None)
    assert scope.title == f"all 8 runs of {two_sweeps}"
    assert scope.verdict == VerdictSpec()
    assert scope.notes == ["runs of several sweeps: verdicts use the default margin unless --margin is given"]
    for look in (look_at, choose):
        with pytest.raises(ScopeError, match="--sweep and --all exclude each other"):
            look(two_sweeps, sweep="old-1", everything=True)


def test_everything_of_one_sweep_keeps_its_margin(tmp_path: Path) -> None:
    small(tmp_path, "only", margin=0.07)
    assert look_at(tmp_path, everything=True).verdict.margin == 0.07


def test_a_store_without_a_sweep_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    small(tmp_path, None)
    scope = look_at(tmp_path)
    assert (len(scope.runs), scope.sweep, scope.verdict) == (4, None, VerdictSpec())
    assert scope.notes == ["the store has no sweep: all its runs are looked at"]
    with pytest.raises(ScopeError, match=r"no such sweep in .*; there are: none at all"):
        look_at(tmp_path, sweep="x")


@pytest.mark.parametrize("content", [b"{", b"", b'{"schema_version": 99}', b'{"schema_version": 1, "id": "other"}'])
def test_a_damaged_record_is_said_and_the_next_sweep_is_looked_at(tmp_path: Path, content: bytes) -> None:
    small(tmp_path, "old-1")
    small(tmp_path, "new-2", lengths=(128,), minutes=5)
    (tmp_path / "sweeps/new-2.json").write_bytes(content)
    scope = look_at(tmp_path)
    assert scope.title == "sweep old-1"
    assert len(scope.notes) == 1
    assert scope.notes[0].startswith("sweep record left out: ")
    assert "new-2.json" in scope.notes[0]
    assert choose(tmp_path, sweep="old").notes == scope.notes


def test_missing_runs_of_a_sweep_are_said(tmp_path: Path) -> None:
    ids = small(tmp_path, "only")
    shutil.rmtree(tmp_path / ids[1])
    scope = look_at(tmp_path)
    assert scope.notes == [f"1 of its 4 runs is not in the store: {ids[1]}"]
    assert set(scope.runs["run_id"]) == set(ids) - {ids[1]}
    assert choose(tmp_path, sweep="only").notes == scope.notes


def test_a_sweep_whose_runs_are_all_gone(tmp_path: Path) -> None:
    small(tmp_path, "old-1")
    for name in small(tmp_path, "new-2", lengths=(128,), minutes=5):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(ScopeError, match=r"sweep new-2: none of its 4 runs is in .*; run it again, or use --all"):
        look_at(tmp_path)
    assert choose(tmp_path, sweep="new").runs.empty, "a list of them is empty, and says why"
    assert "4 of its 4 runs" in choose(tmp_path, sweep="new").notes[0]
    assert len(look_at(tmp_path, everything=True).runs) == 4


@pytest.mark.parametrize("verdict", [{"margin": -1}, {"margin": "x"}, {"margin": None}, [], None, {"other": 1}])
def test_a_damaged_margin_is_said(tmp_path: Path, verdict: Any) -> None:
    small(tmp_path, "only")
    path = tmp_path / "sweeps/only.json"
    record = json.loads(path.read_text())
    record["spec"]["verdict"] = verdict
    write(path, record)
    scope = look_at(tmp_path)
    assert scope.verdict == VerdictSpec()
    assert scope.notes == ["the verdict of sweep only is damaged: the default margin is used"]
    del record["spec"]["verdict"]
    write(path, record)
    assert look_at(tmp_path).notes == ["sweep only says nothing of a margin: the default is used"]


def test_where_keeps_runs_and_says_how_many(two_sweeps: Path) -> None:
    scope = look_at(two_sweeps, where="attention.top_k_ratio == 0.5")
    assert set(scope.runs["attention"]) == {"dsa"}
    assert scope.title == "sweep new-2 where attention.top_k_ratio == 0.5"
    assert scope.notes == ["--where keeps 2 of 4 runs"]
    assert list(scope.runs.index) == [0, 1]
    chosen = choose(two_sweeps, where="seed == 2")
    assert (len(chosen.runs), chosen.total, chosen.title) == (4, 8, f"all runs of {two_sweeps}")


def test_where_that_keeps_nothing(two_sweeps: Path) -> None:
    with pytest.raises(ScopeError, match=r"--where 'seed == 99' keeps none of the 4 runs"):
        look_at(two_sweeps, where="seed == 99")
    assert choose(two_sweeps, where="seed == 99").runs.empty


def test_where_of_a_hostile_kind_is_refused(two_sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for query in ("val_loss.map(print)", "@pd", "run_id.__class__ == 1", "print(1)", "[]", ""):
        for look in (look_at, choose):
            with pytest.raises(ScopeError):
                look(two_sweeps, where=query)
    assert capsys.readouterr().out == ""


def test_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    make_store(tmp_path / "empty")
    with pytest.raises(StoreError, match="a store without runs"):
        look_at(tmp_path / "empty")
    assert choose(tmp_path / "empty").total == 0
    for look in (look_at, choose):
        with pytest.raises(StoreError, match="no run store there"):
            look(tmp_path / "nowhere")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sweep=st.one_of(st.none(), st.sampled_from(["old-1", "n", "../sweeps/old-1", "\0", ""]), st.text(max_size=8)),
    everything=st.booleans(),
    where=st.one_of(
        st.none(), st.sampled_from(["length == 64", "leak", "seed > 1", "a.b.c == 1"]), st.text(max_size=20)
    ),
)
def test_any_choice_is_runs_or_one_message(
    two_sweeps: Path, sweep: str | None, everything: bool, where: str | None
) -> None:
    known = set(load_runs(two_sweeps)["run_id"])
    for look in (look_at, choose):
        try:
            found = look(two_sweeps, sweep=sweep, everything=everything, where=where)
        except DsabenchError as error:
            assert isinstance(error, ScopeError)
        else:
            assert set(found.runs["run_id"]) <= known
