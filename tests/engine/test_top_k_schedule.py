"""k as a schedule over steps: which steps and evaluations keep how many keys, what it costs, and resuming in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from single_runs import MODEL, base

import dsabench
from dsabench.attention.base import AttentionContext, Selection
from dsabench.engine import memory_plan
from dsabench.engine.device import Execution
from dsabench.engine.loop import TrainingRun
from dsabench.engine.segments import segments
from dsabench.engine.step import EAGER_STEPS, TrainStep
from dsabench.errors import SpecError
from dsabench.model.transformer import ForwardPass, build, flops_per_window, outline
from dsabench.spec.attention import BUILT_IN, ScheduledSpec
from dsabench.spec.run import RunSpec, validate
from dsabench.sweeps import single_run

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)

SCHEDULE = [[8, 16], [12, 8]]
"""16 keys before step 8 (4 of which are warm-up), 8 before step 12, then top_k = 4."""

SCHEDULED = [name for name, spec in BUILT_IN.items() if issubclass(spec, ScheduledSpec)]


def values(corpus: Path, kind: str = "dsa", schedule: Any = SCHEDULE, **train: Any) -> dict[str, Any]:
    found = base(corpus, steps=16, eval_every=4, log_every=4, warmup_steps=2, **train)
    warm: dict[str, Any] = {"warmup_share": 0.25}
    if "indexer" in BUILT_IN[kind].model_fields:
        warm = {"indexer": {"n_heads": 2, "head_dim": 8, "warmup_steps": 4}}
    pools = {"pool_size": 1} if kind == "pooled_dsa" else {}  # else rows keep whole pools, and what is left of one
    found["attention"] = {"kind": kind, "top_k": 4, **warm, **pools, "top_k_schedule": schedule}
    found["engine"] = {"device": "cpu", "checkpoint_every": 2}
    return found


def kept_at(step: int) -> int:
    return next((k for end, k in SCHEDULE if step < end), 4)


@pytest.mark.parametrize("kind", SCHEDULED)
def test_every_step_and_evaluation_keeps_the_keys_of_its_step(
    kind: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[int, set[int]] = {}
    evaluated: list[int] = []
    honest = AttentionContext.keys_kept

    def seen(self: AttentionContext, spec: Any, length: int) -> int:
        k = honest(self, spec, length)
        if self.stage == "sparse" and self.step is not None:
            trained.setdefault(int(self.step), set()).add(k)
        elif self.stage == "sparse" and self.capture is not None:
            evaluated.append(k)
        return k

    monkeypatch.setattr(AttentionContext, "keys_kept", seen)
    record = single_run.train(validate(values(corpus, kind)), tmp_path)
    trained.pop(0, None)  # the audit's, before training
    assert trained == {step: {kept_at(step)} for step in range(4, 16)}
    metrics = dsabench.load_metrics(tmp_path, run_ids=[record.run_id])
    evaluations = metrics[(metrics["kind"] == "eval") & (metrics["stage"] == "sparse")]
    assert list(evaluations["step"]) == [8, 12, 16]
    assert sorted(set(evaluated), reverse=True) == [16, 8, 4]
    chances = [float(one) for one in evaluations["mass_recall_chance"]]
    wanted = [sum(k / seen for seen in range(k + 1, 33)) / (32 - k) for k in (16, 8, 4)]
    assert chances == pytest.approx(wanted), "k at an evaluation is that of the step before it"


@pytest.mark.parametrize("kind", SCHEDULED)
@pytest.mark.parametrize("k", [1, 5, 31, 40])
def test_a_selection_has_as_many_keys_as_the_pass_asks_for(kind: str, k: int) -> None:
    spec = validate({"length": 32, "model": MODEL, "attention": {"kind": kind, "top_k": 3}})
    model = build(spec, 50).eval()
    captured: dict[int, Selection] = {}
    tokens_BT = torch.randint(50, (2, 32), generator=torch.Generator().manual_seed(0))
    other = validate({"length": 32, "model": MODEL, "attention": {"kind": kind, "top_k": k}})
    whole = build(other, 50).eval()
    with torch.no_grad():
        ours = model(tokens_BT, ForwardPass(capture=captured, top_k=k)).logits_BTV
        theirs = whole(tokens_BT).logits_BTV
    assert torch.equal(ours, theirs), "the same as of a model with that k"
    counts_T = (captured[0].selected_BTK[0] >= 0).sum(-1)
    assert counts_T.tolist() == [other.attention.selected_between(t, 32)[1] for t in range(32)]


@pytest.mark.parametrize("stop", [2, 6, 8, 10, 12, 14])
def test_a_run_resumes_in_its_schedule_to_the_same_bits(
    stop: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = validate(values(corpus))
    calm = single_run.train(spec, tmp_path / "calm")
    honest = TrainingRun._checkpoint

    def cut(self: TrainingRun) -> None:
        honest(self)
        if self.progress.step == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec, tmp_path / "wild")
    again = single_run.train(spec, tmp_path / "wild")
    ours, theirs = (
        load_file(tmp_path / store / calm.run_id / "checkpoint/model.safetensors") for store in ("calm", "wild")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.summary["val_loss"] == calm.summary["val_loss"]
    assert again.summary["flops"] == calm.summary["flops"]


def test_a_schedule_that_never_changes_k_is_none(corpus: Path, tmp_path: Path) -> None:
    """The same numbers under another identity; without a schedule the identity is what it was."""
    plain, same = validate(values(corpus, schedule=None)), validate(values(corpus, schedule=[[8, 4]]))
    one, other = (single_run.train(spec, tmp_path) for spec in (plain, same))
    assert one.run_id != other.run_id
    assert one.summary["val_loss"] == other.summary["val_loss"] and one.summary["flops"] == other.summary["flops"]
    assert "top_k_schedule" not in plain.model_dump(exclude_defaults=True)["attention"]


def test_flops_are_those_of_each_steps_k(corpus: Path, tmp_path: Path) -> None:
    spec = validate(values(corpus))
    record = single_run.train(spec, tmp_path)

    def window(k: int, stage: Any) -> float:
        attention = spec.attention.model_copy(update={"top_k": k, "top_k_schedule": None})
        model = outline(spec.model_copy(update={"attention": attention}), record.summary["vocab_size"])
        return sum(flops_per_window(model, stage).values())

    wanted = 4 * window(4, "dense") + sum(window(kept_at(step), "sparse") for step in range(4, 16))
    assert record.summary["flops"] == pytest.approx(spec.batch_size * wanted)
    assert window(16, "sparse") > window(4, "sparse")


def test_memory_is_planned_for_the_most_keys() -> None:
    def planned(**attention: Any) -> float:
        spec = validate(
            {"length": 4096, "model": {"n_kv_heads": 1}, "attention": {"kind": "dsa", "backend": "triton", **attention}}
        )
        model = outline(spec.model_copy(update={"attention": spec.attention.at_most_keys(4096)}), 100)
        return sum(memory_plan.estimate(model, CPU, 1, False).values())

    most = planned(top_k=1024)
    assert planned(top_k=64, top_k_schedule=[[500, 1024]]) == most > planned(top_k=64)


def test_another_k_is_another_graph(corpus: Path) -> None:
    """A captured step replays the keys that it was captured with: it is dropped when k changes, and only then."""
    spec = validate(values(corpus))
    step = TrainStep.__new__(TrainStep)
    step.spec, step.top_k, step.batches_SBT = spec, None, torch.zeros(64, 1)
    dropped = []
    step._run = lambda first, *rest: torch.zeros(1)  # type: ignore[method-assign]
    for first in range(4, 16):
        step.graphs = {"dense": "graph", "sparse": "graph"}  # type: ignore[dict-item]
        step.run(first, "sparse", torch.zeros(1, 1))
        if "sparse" not in step.graphs:
            dropped.append(first)
        assert "dense" in step.graphs
    assert dropped == [4, 8, 12]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=4), st.integers(0, 63))
def test_segments_never_cross_a_change_and_begin_with_eager_steps(pairs: list[tuple[int, int]], start: int) -> None:
    schedule = sorted(dict(pairs).items())
    attention = {"kind": "random", "top_k": 2, "warmup_share": 0.0, "top_k_schedule": [list(pair) for pair in schedule]}
    spec = validate({"length": 32, "attention": attention, "train": {"steps": 64, "log_every": 64, "eval_every": 64}})
    found = list(segments(spec, start, 64))
    assert found[0][0] == start and found[-1][1] == 64
    for first, end, _ in found:
        assert len({spec.attention.top_k_at(step) for step in range(first, end)}) == 1
    for change in spec.attention.key_changes():
        if change >= start:
            (length,) = [end - first for first, end, _ in found if first == change]
            assert length <= EAGER_STEPS


REFUSED = {
    "steps that fall": ({"top_k_schedule": [[400, 128], [200, 256]]}, "accepted: pairs .step, k. of whole"),
    "no pairs": ({"top_k_schedule": []}, "accepted: pairs .step, k. of whole"),
    "no key": ({"top_k_schedule": [[400, 0]]}, "accepted: pairs .step, k. of whole"),
    "three numbers": ({"top_k_schedule": [[400, 128, 64]]}, "accepted: pairs .step, k. of whole"),
    "beyond the last step": ({"top_k_schedule": [[1000, 128]]}, "before step 1000; .*below train.steps = 1000"),
    "in the warm-up": (
        {"top_k_schedule": [[20, 128]], "indexer": {"warmup_steps": 20}}, "a step above the 20 of the dense warm-up"
    ),
    "another attention": ({"kind": "strided", "top_k_schedule": [[20, 128]]}, "top_k_schedule"),
    "dense": ({"kind": "dense", "top_k_schedule": [[20, 128]]}, "top_k_schedule"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_schedule_is_refused(case: str) -> None:
    attention, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        validate({"attention": attention, "train": {"steps": 1000}})


def test_a_spec_keeps_its_schedule() -> None:
    spec = validate({"attention": {"kind": "dsa", "top_k": 4, "top_k_schedule": [[300, 16]]}})
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
