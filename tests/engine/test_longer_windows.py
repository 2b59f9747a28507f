"""train.eval_multiples: evaluation on windows longer than those of training, of texts and of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from single_runs import DSA, base

from dsabench.data import cut, prepare
from dsabench.engine.device import resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.run_records import RunRecords
from dsabench.errors import DataError, SpecError
from dsabench.models import load_model
from dsabench.spec.run import RunSpec, validate
from dsabench.store import load_lists, read_metrics
from dsabench.sweeps.plan import check_data, plan
from dsabench.sweeps.single_run import train


def _text(corpus: Path, multiples: list[int]) -> RunSpec:
    return validate(base(corpus, steps=6, eval_every=3, eval_multiples=multiples))


def _task(corpus: Path, multiples: list[int]) -> RunSpec:
    whole: dict[str, Any] = base(corpus, steps=6, eval_every=3, eval_multiples=multiples)
    task = {"n_pairs": 4, "n_keys": 8, "n_values": 8}
    return validate({**whole, "attention": DSA, "data": {"source": "task:recall", "task": task}})


@pytest.mark.parametrize("spec_of", [_text, _task])
def test_the_trained_model_on_longer_windows_is_recorded(spec_of: Any, corpus: Path, tmp_path: Path) -> None:
    spec = spec_of(corpus, [2, 3])
    record = train(spec, tmp_path, progress=False)
    assert record.status == "done", record.error
    evaluations = [one for one in read_metrics(tmp_path, record.run_id) if one["kind"] == "eval"]
    assert [one["step"] for one in evaluations if "loss_by_multiple" in one] == [0, 6], "in between it costs time alone"
    model = load_model(tmp_path, record.run_id)
    evaluator, data = Evaluator(model, resolve(spec.engine)), prepare(spec.data)
    found = [evaluator.evaluate(cut(data, n * 32).evaluation("val", spec.train.eval_tokens)) for n in (2, 3)]
    last = evaluations[-1]
    assert last["loss_by_multiple"] == pytest.approx([one["loss"] for one in found], rel=1e-6)
    assert last["accuracy_by_multiple"] == pytest.approx([one["accuracy"] for one in found])
    assert record.summary["extrapolated_loss"] == last["loss_by_multiple"][1] != last["val_loss"]
    assert record.summary["extrapolated_accuracy"] == last["accuracy_by_multiple"][1]
    lists = load_lists(tmp_path)
    assert set(lists.loc[lists["metric"] == "loss_by_multiple", "place"]) == {0, 1}


def test_it_changes_nothing_else(corpus: Path, tmp_path: Path) -> None:
    first, second = (train(_text(corpus, several), tmp_path, progress=False) for several in ([], [2]))
    assert first.run_id != second.run_id
    assert first.summary["val_loss"] == second.summary["val_loss"]
    assert "extrapolated_loss" not in first.summary


def test_windows_that_there_are_not_are_named_before_anything_is_trained(corpus: Path, tmp_path: Path) -> None:
    spec = _text(corpus, [2, 250])
    said = r"train.eval_multiples: 250 times 32 tokens: length 8000 needs a document of 8001 tokens"
    with pytest.raises(DataError, match=said):
        train(spec, tmp_path, progress=False)
    with pytest.raises(DataError, match=said):
        check_data(plan([spec], tmp_path))
    assert not list(tmp_path.glob("dsa-*"))


def test_a_multiple_is_at_least_two(corpus: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.eval_multiples = 1 is not accepted"):
        _text(corpus, [1])


@pytest.mark.parametrize("multiples", [[4, 2], [2, 2]])
def test_multiples_rise(corpus: Path, multiples: list[int]) -> None:
    with pytest.raises(SpecError, match="they must rise"):
        _text(corpus, multiples)


def test_a_run_killed_between_its_last_record_and_its_summary_has_them_too(corpus: Path, tmp_path: Path) -> None:
    spec, honest = _text(corpus, [2]), RunRecords.summary

    def killed(self: RunRecords, last_eval: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecords, "summary", killed)
        with pytest.raises(KeyboardInterrupt):
            train(spec, tmp_path, progress=False)
    assert RunRecords.summary is honest
    record = train(spec, tmp_path, progress=False)
    last = [one for one in read_metrics(tmp_path, record.run_id) if one["kind"] == "eval"][-1]
    assert record.summary["extrapolated_loss"] == last["extrapolated_loss"]
