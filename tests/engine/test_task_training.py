"""Training on a task: only answers are learnt, batches are paired, records say how many targets were found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsabench import models
from dsabench.data import cut, fingerprint, prepare
from dsabench.engine.device import resolve
from dsabench.engine.model_inputs import model_inputs
from dsabench.engine.slot import Slots
from dsabench.engine.staged_batches import staged
from dsabench.errors import DsabenchError
from dsabench.reproduction.compare_records import compare_records
from dsabench.spec.config import load_sweep
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate
from dsabench.store import load_runs, read_metrics
from dsabench.sweeps import single_run
from dsabench.sweeps.plan import plan


def spec_of(kind: str = "dsa", **changes: Any) -> RunSpec:
    base: dict[str, Any] = {
        "length": 32,
        "attention": {"kind": kind, **({"top_k": 8} if kind == "dsa" else {})},
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8, "n_experts": 2, "experts_per_token": 1},
        "data": {"source": "task:recall", "task": {"n_pairs": 4, "n_keys": 8, "n_values": 8}},
        "train": {"steps": 8, "batch_size": 4, "warmup_steps": 2, "eval_every": 4, "eval_tokens": 512, "log_every": 2},
        "engine": {"device": "cpu"},
    }
    for path, value in changes.items():
        part, _, name = path.partition("__")
        base[part] = {**base[part], name: value} if name else value
    return validate(base)


SMALL: dict[str, dict[str, Any]] = {
    "recall": {"n_pairs": 4, "n_keys": 8, "n_values": 8},
    "needle": {"n_needles": 3, "n_words": 9},
    "selective_copy": {"n_copied": 5},
    "multi_needle": {"n_needles": 2, "n_values": 9},
    "common_words": {"n_rare": 4, "common_count": 3},
}


def trained(spec: RunSpec, other_unscored: bool = False, micro_batch: int | None = None) -> dict[str, torch.Tensor]:
    """Weights after three steps, and the history; with other tokens where nothing is scored and nothing follows."""
    data, execution = prepare(spec.data), resolve(spec.engine)
    slot = Slots().take(spec, data.vocab_size, execution)
    slot.begin(spec)
    slot.step.micro_batch = micro_batch or spec.batch_size
    windows = cut(data, spec.length)
    given = staged([windows.batch(1, step, spec.batch_size, 3) for step in range(3)], execution.device)
    tokens, scored = given.tokens_SBT, given.scored_SBT
    if other_unscored:  # the last target is no input: where it is not scored, it must not matter at all
        assert scored is not None
        last = scored[..., -1]
        assert not last.all()
        tokens[..., -1] = torch.where(last, tokens[..., -1], (tokens[..., -1] + 1) % data.vocab_size)
    history = slot.step.run(0, "sparse", tokens, scored)
    return {"history": history, **{name: p.detach().clone() for name, p in slot.model.named_parameters()}}


def test_what_is_not_scored_is_not_learnt() -> None:
    spec = spec_of(data__task={"n_pairs": 2, "n_keys": 8, "n_values": 8, "n_fillers": 4, "curriculum": None})
    one, other = trained(spec), trained(spec, other_unscored=True)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("answers", ["hidden", "shown"])
@pytest.mark.parametrize("source", ["recall", "needle", "selective_copy"])
def test_the_loss_is_the_mean_over_answers(source: str, answers: str) -> None:
    """In training and in evaluation, of a model that reads the covers of hidden answers."""
    spec = spec_of(data={"source": f"task:{source}", "task": {"answers": answers, "curriculum": None, **SMALL[source]}})
    data = prepare(spec.data)
    batch = cut(data, 32).batch(1, 0, 4, 3)
    assert batch.scored is not None
    assert (batch.inputs != batch.tokens[:, :-1]).any() == (answers == "hidden")
    model = models.build_model(spec)
    x, following = (torch.from_numpy(ids.astype(np.int64)) for ids in (batch.inputs, batch.tokens[:, 1:]))
    nll = -model(x).logits_BTV.double().log_softmax(-1).gather(-1, following[..., None])[..., 0].detach()
    expected = float(nll[torch.from_numpy(batch.scored)].mean())
    assert float(trained(spec)["history"][0, 0]) == pytest.approx(expected, abs=1e-5)
    slot = Slots().take(spec, data.vocab_size, resolve(spec.engine))
    assert slot.evaluator.evaluate(batch, "sparse")["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("source", SMALL)
def test_no_answer_is_read_where_answers_are_hidden(source: str) -> None:
    """Inputs are the same on device and host, and whatever the answers are."""
    spec = spec_of(data={"source": f"task:{source}", "task": {"curriculum": None, **SMALL[source]}})
    batch = cut(prepare(spec.data), 32).evaluation("val", 320)
    assert batch.scored is not None
    tokens_BT, scored_BT = torch.from_numpy(batch.tokens), torch.from_numpy(batch.scored)
    read = model_inputs(spec, tokens_BT, scored_BT)
    assert (read.numpy() == batch.inputs).all()
    other_BT = tokens_BT.clone()
    other_BT[:, 1:][scored_BT] = 1
    assert torch.equal(read, model_inputs(spec, other_BT, scored_BT))


def test_micro_batches_add_up_to_the_batch() -> None:
    spec = spec_of(model__balance_loss_weight=0.0)
    whole, parts = trained(spec), trained(spec, micro_batch=2)
    assert torch.allclose(whole["history"][:, 0], parts["history"][:, 0], atol=1e-5)


def test_a_run_records_accuracy_beside_the_floor_and_target_recall_beside_chance(tmp_path: Path) -> None:
    for kind in ("dense", "dsa"):
        assert single_run.train(spec_of(kind), tmp_path).status == "done"
    runs = load_runs(tmp_path).set_index("attention")
    dsa, dense = runs.loc["dsa"], runs.loc["dense"]
    assert dsa["task_accuracy"] == dsa["val_accuracy"]
    task = spec_of().data.task
    assert task is not None
    assert dsa["chance_accuracy"] == dense["chance_accuracy"] == pytest.approx(task.floor.accuracy)
    assert dsa["unigram_loss"] == pytest.approx(task.floor.loss)
    assert "recorded.chance_accuracy" not in runs
    assert 0 <= dsa["target_recall"] <= dsa["target_recall_best"] <= 1
    assert 0.2 < dsa["target_recall_chance"] < 1
    assert np.isnan(dense["target_recall_best"])
    assert np.isnan(dense["val_bits_per_byte"])
    evaluations = [read for read in read_metrics(tmp_path, str(dsa["run_id"])) if read["kind"] == "eval"]
    assert evaluations[-1]["target_recall_by_layer"]
    by_position = np.asarray(evaluations[-1]["loss_by_position"], float)
    scored = cut(prepare(spec_of().data), 32).evaluation("val", 512).scored
    assert scored is not None
    assert (np.isnan(by_position) == ~scored.any(0)).all()


def test_another_floor_is_no_difference_between_two_trainings_of_a_task() -> None:
    """Earlier versions recorded a lower guess; of a text the baseline is computed from the corpus and is compared."""
    task = {"kind": "eval", "step": 0, "val_loss": 2.0, "chance_accuracy": 0.1, "unigram_loss": 2.3}
    text = {**task, "chance_accuracy": None}
    assert compare_records([task], [{**task, "chance_accuracy": 0.4, "unigram_loss": 1.2}]).all_same
    assert not compare_records([task], [{**task, "val_loss": 2.1}]).all_same
    assert not compare_records([text], [{**text, "unigram_loss": 1.2}]).all_same


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    spec = spec_of(engine={"device": "cpu", "checkpoint_every": 4})

    def stop(update: Any) -> None:
        if update.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        single_run.train(spec, tmp_path / "a", observe=stop)
    again, whole = single_run.train(spec, tmp_path / "a"), single_run.train(spec, tmp_path / "b")
    assert again.summary["val_loss"] == whole.summary["val_loss"]
    assert again.summary["task_accuracy"] == whole.summary["task_accuracy"]


def test_identity_is_the_task_and_not_what_a_text_needs(tmp_path: Path) -> None:
    def identity(**data: Any) -> str:
        return plan([spec_of(data={"source": "task:recall", **data})], tmp_path)[0].run_id

    four = {"n_pairs": 4}
    assert identity(task=four) == identity(task={**four, "n_keys": 128}, vocab_size=300, tokenizer="bytes")
    others = ({"n_pairs": 5}, {**four, "curriculum": None}, {**four, "answers": "shown"})
    ids = {identity(task=four), *(identity(task=task) for task in others)}
    assert len(ids) == 4
    spec = spec_of()
    assert run_id(spec, fingerprint(spec.data)) == run_id(validate(spec.model_dump()), fingerprint(spec.data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "task:recal"}, r"no task 'recal'; known: recall, induction"),
        ({"source": "sotu", "task": {"n_pairs": 4}}, r"task has settings, and source = sotu is a text"),
        ({"source": "task:recall", "task": {"n_pair": 4}}, r"unknown field data\.task\.n_pair; did you mean n_pairs\?"),
        ({"source": "task:recall", "task": {"n_pairs": 0}}, r"data\.task\.n_pairs = 0 is not accepted; accepted: a wh"),
        ({"source": "task:recall", "task": {"name": "needle"}}, r"are two tasks; leave task\.name out"),
        ({"source": "task:recall", "tokenzier": "bytes"}, r"unknown field data\.tokenzier; did you mean tokenizer\?"),
        ({"source": "task:recall", "task": 3}, r"task = 3 is not accepted; accepted: a mapping"),
        ({"source": "task:recall"}, r"takes 64 tokens.*length 32 has 33; n_pairs = 8 and n_queries = 8 would fit"),
    ],
)
def test_bad_settings_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DsabenchError, match=message):
        spec_of(data=data)


@pytest.mark.parametrize(("source", "task"), [("sotu", None), ("task:needle", {"n_needles": 2})])
def test_another_source_leaves_the_settings_of_the_configs_task(source: str, task: dict[str, Any] | None) -> None:
    sweep = load_sweep("recall")
    for path, value in {"data.source": source, **{f"data.task.{k}": v for k, v in (task or {}).items()}}.items():
        sweep.set(path, value, f"--set {path}: ")
    data = sweep.first().data
    assert data.source == source
    assert (data.task.size if data.task else None) == (2 if task else None)
