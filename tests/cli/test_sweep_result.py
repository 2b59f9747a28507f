"""The words of a sweep before and after its training: what selects everything, what fails first, and the answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import resealed
import synthetic
from compared import DENSE, DSA
from hypothesis import given
from hypothesis import strategies as st
from shell import Shell

from dsabench.cli.views.sweep_plan import selecting_everything
from dsabench.cli.views.sweep_result import report_sweep
from dsabench.spec.run import validate
from dsabench.store import load_runs


def result(store: Path, out: Path, as_json: bool = False) -> None:
    runs = [SimpleNamespace(run_id=run_id, for_children=False) for run_id in load_runs(store)["run_id"]]
    report_sweep("synthetic-00000000", cast(Any, runs), store, out, as_json=as_json)


def test_a_sweep_ends_with_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.experiment(tmp_path / "runs")
    result(tmp_path / "runs", tmp_path / "out")
    answer = "Yes, at 64 to 256 tokens: within 0.02 nats of dense (5 seeds), at 1.2 to 1.6 times the time of a step."
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("length")
    place = lines.index(answer)
    assert lines[place + 1].startswith("Written: ")
    result(tmp_path / "runs", tmp_path / "out", as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["answer"], document["warnings"]) == (answer, [])


def test_what_fails_is_said_above_the_table_and_withholds_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "runs"
    synthetic.experiment(store, lengths=(64,), attentions=(DENSE, {"kind": "dsa", "top_k": 100}))
    (path,) = store.glob("dense-L64-s43-*/run.json")
    resealed.replace(path, '"step_ms": 4.0', '"step_ms": 9.0')
    result(store, tmp_path / "out")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("WARNING: DSA at 64 tokens selects everything")
    assert lines[1].startswith("WARNING: Step times of one shape differ up to 2.25-fold")
    assert "    selects everything, as dense attention does" in lines
    assert "(5.00)" in text and "(ms/step in brackets): " in text
    assert "No verdict: it selects everything (k = 64), so it is dense attention." in lines
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["warnings"]) == 2


@pytest.mark.parametrize("kind", [DENSE, DSA])
def test_one_attention_alone_has_its_table_and_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: dict[str, Any]
) -> None:
    store = tmp_path / "runs"
    synthetic.experiment(store, lengths=(64,), attentions=(kind,))
    for path in store.glob("*-s42-*/run.json"):
        resealed.revise(path.parent, unigram_loss=4.0)
    result(store, tmp_path / "out")
    text = capsys.readouterr().out
    assert text.startswith("WARNING: 1 of 5 runs is no better than the unigram baseline")
    assert "No answer" not in text
    assert json.loads((tmp_path / "out/summary.json").read_text())["answer"].startswith("No answer: ")


@given(
    lengths=st.lists(st.integers(2, 300), min_size=1, max_size=4, unique=True),
    attention=st.one_of(
        st.builds(lambda k: {"kind": "dsa", "top_k": k, "top_k_ratio": None}, st.integers(1, 300)),
        st.builds(lambda share: {"kind": "dsa", "top_k_ratio": share}, st.floats(0.01, 1.0)),
        st.just(DENSE),
    ),
)
def test_a_plan_names_each_length_at_which_everything_is_selected(
    lengths: list[int], attention: dict[str, Any]
) -> None:
    specs = [validate({"length": length, "attention": attention}) for length in lengths]
    said = " ".join(selecting_everything(cast(Any, [SimpleNamespace(spec=spec) for spec in specs])))
    for spec in specs:
        k = spec.attention.n_selected(spec.length)
        named = f" {spec.length}:" in said or f" {spec.length} and " in said
        assert named == (k is not None and k >= spec.length)


def test_the_dry_run_marks_what_selects_everything(shell: Shell) -> None:
    words = ["sweep", "--config", "quick", "--lengths", "64", "128", "--set", "attention.top_k=100", "--dry-run"]
    code, out, err = shell(*words)
    assert code == 0, err
    assert "dsa with k = 100 selects everything at length 64: it leaves nothing out there" in out
    assert "selecting variants keep 100 (everything) keys" in out
    assert out.count("  selects everything") == 3
    runs = json.loads(shell(*words, "--json")[1])["runs"]
    assert [run["selects_everything"] for run in runs] == [
        run["spec"]["attention"]["kind"] == "dsa" and run["spec"]["length"] == 64 for run in runs
    ]
