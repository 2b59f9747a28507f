"""Runs that start from a trained model: its weights, its text that goes on, and what is refused."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from single_runs import base, stopped_at_a_checkpoint

import dsabench
from dsabench.cli.views import runs_show
from dsabench.engine.loop import TrainingRun
from dsabench.engine.prepared_run import PreparedRun
from dsabench.errors import DataError, DsabenchError, SpecError, StoreError
from dsabench.model.transformer import build
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.sweep import Sweep
from dsabench.store import read_run
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.origin import identity_of, origin_of, start_digest
from dsabench.sweeps.schedule import run_sweep

PARENT = {"parent": {"attention.kind": "dense", "train.steps": 6}}


def child(corpus: Path, start: Any = PARENT, attention: Any = None, **changes: Any) -> dict[str, Any]:
    values = base(corpus, steps=4, eval_every=2, log_every=1, warmup_steps=1)
    values["start"] = start
    if attention is not None:
        values["attention"] = attention
    return {**values, **changes}


@pytest.fixture(scope="module")
def family(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dense parent of 6 steps and its DSA child of 4."""
    store = tmp_path_factory.mktemp("family") / "runs"
    assert single_run.train(validate(child(corpus)), store).status == "done"
    return store


def parent_of(store: Path) -> Any:
    return read_run(store, next(path.name for path in store.glob("dense-*")))


def child_of(store: Path) -> Any:
    return read_run(store, next(path.name for path in store.glob("dsa-*")))


def test_a_parent_is_trained_first_and_told_of(family: Path) -> None:
    parent, own = parent_of(family), child_of(family)
    assert own.fingerprint["start"] == parent.run_id
    assert own.environment["start"] == {
        "run": parent.run_id,
        "weights": parent.seal.files["checkpoint/model.safetensors"].digest,
        "steps": 6,
        "val_loss": parent.summary["val_loss"],
    }
    metrics = dsabench.load_metrics(family, run_ids=[own.run_id])
    at_start = metrics[(metrics["kind"] == "eval") & (metrics["step"] == 0)].iloc[0]
    assert at_start["stage"] == "dense" and math.isnan(at_start["conversion_loss"])
    assert at_start["val_loss"] == pytest.approx(parent.summary["val_loss"], abs=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_what_the_selection_alone_costs_is_recorded_before_the_first_sparse_step(
    warmup: int, corpus: Path, family: Path, tmp_path: Path
) -> None:
    """Sparse minus dense of the same weights: without a warm-up, of the parent's; at step 1 and 3 no other record."""
    indexer = {"n_heads": 2, "head_dim": 8, "warmup_steps": warmup, "freeze_backbone": warmup > 0}
    attention = {"kind": "dsa", "top_k": 2, "indexer": indexer}
    shutil.copytree(family, tmp_path / "runs")
    record = single_run.train(validate(child(corpus, {"run": "dense"}, attention)), tmp_path / "runs")
    metrics = dsabench.load_metrics(tmp_path / "runs", run_ids=[record.run_id])
    found = metrics[metrics["conversion_loss"].notna()] if "conversion_loss" in metrics else metrics[:0]
    assert list(found["step"]) == [warmup]
    own = parent_of(family).summary["val_loss"]
    cost = found["conversion_loss"].iloc[0]
    assert found["val_loss"].iloc[0] == pytest.approx(own + (0 if warmup else cost), abs=1e-6), "the backbone is frozen"
    assert abs(cost) > 1e-5
    assert math.isfinite(found["mass_recall"].iloc[0])
    assert "conversion_loss" not in record.summary
    shown = runs_show.found(tmp_path / "runs", record.run_id)
    console = Console(file=io.StringIO(), width=200)
    runs_show.print_run(shown, tmp_path / "runs", console)
    assert f"at step {warmup}: {cost:+.4f} nats by the selection" in console.file.getvalue()


def test_a_childs_epochs_count_its_parents_text(corpus: Path, family: Path) -> None:
    own = child_of(family)
    a_step, text = own.summary["tokens"] / 4, own.summary["text_tokens"]
    rows = dsabench.load_runs(family).set_index("run_id")["epochs"]
    assert rows[own.run_id] == pytest.approx(10 * a_step / text)
    assert rows[parent_of(family).run_id] == pytest.approx(6 * a_step / text)
    for start in (PARENT, {"run": "dense"}):
        planned = plan.plan([validate(child(corpus, start))], family)[-1]
        assert planned.epochs == pytest.approx(10 * a_step / text), start


def weights_at_start(spec: RunSpec, store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The child's parameters before its first step."""
    seen: dict[str, torch.Tensor] = {}
    honest = TrainingRun._launch

    def launch(self: TrainingRun, first: int, *rest: Any) -> Any:
        if first == 0 and self.run.start is not None:
            seen.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
            assert not list(self.optimizer.state()) or all(not value.any() for _, value in self.optimizer.state())
        return honest(self, first, *rest)

    monkeypatch.setattr(TrainingRun, "_launch", launch)
    assert single_run.train(spec, store).status == "done"
    return seen


def test_shared_parameters_are_the_parents_to_the_bit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = validate(child(corpus))
    seen = weights_at_start(spec, tmp_path / "runs", monkeypatch)
    parent = parent_of(tmp_path / "runs")
    theirs = load_file(tmp_path / "runs" / parent.run_id / "checkpoint/model.safetensors")
    drawn = dict(build(spec, parent.summary["vocab_size"]).named_parameters())
    assert theirs.keys() < seen.keys() == drawn.keys()
    for name, value in seen.items():
        assert torch.equal(value, theirs.get(name, drawn[name])), name
    assert any(not torch.equal(theirs[name], drawn[name]) for name in theirs), "the parent has learnt"


def test_batches_go_on_where_the_parents_ended(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[int, int], Any] = {}
    honest = PreparedRun.batch

    def batch(self: PreparedRun, windows: Any, step: int) -> Any:
        found = honest(self, windows, step)
        seen[self.spec.train.steps, step] = (found.tokens, windows)
        return found

    monkeypatch.setattr(PreparedRun, "batch", batch)
    grandchild = child(corpus, {"run": "dsa"}, train={**child(corpus)["train"], "steps": 5})
    assert single_run.train(validate(child(corpus)), tmp_path / "runs").status == "done"
    assert single_run.train(validate(grandchild), tmp_path / "runs").status == "done"
    _, windows = seen[6, 0]
    line = [windows.batch(1, step, 8, 99).tokens for step in range(15)]
    lived = [seen[steps, step][0] for steps in (6, 4, 5) for step in range(steps)]
    assert all((one == other).all() for one, other in zip(line, lived, strict=True))


@pytest.mark.parametrize("kind", ["dense", "dsa", "random", "sliding_window"])
def test_at_full_k_the_converted_model_is_its_parent(corpus: Path, family: Path, kind: str) -> None:
    attention = {"kind": kind} if kind == "dense" else {"kind": kind, "top_k": 32}
    spec = validate(child(corpus, {"run": "dense"}, attention))
    digests = identity_of(spec, family)[1]
    origin = origin_of(spec, family, digests, print)
    assert origin is not None
    parent = dsabench.load_model(family, parent_of(family).run_id)
    model = build(spec, parent.vocab_size).eval()
    before = model(torch.zeros(1, 32, dtype=torch.long)).logits_BTV
    origin.point.load_into(model)
    tokens_BT = torch.randint(parent.vocab_size, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(tokens_BT).logits_BTV, parent(tokens_BT).logits_BTV
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(before, model(torch.zeros(1, 32, dtype=torch.long)).logits_BTV, atol=1e-3)


def test_the_identity_is_that_of_the_weights(corpus: Path, family: Path, tmp_path: Path) -> None:
    """A run, its folder anywhere, and its checkpoint's folder are one model; other weights are another."""
    parent = parent_of(family)
    away = tmp_path / "elsewhere"
    shutil.copytree(family / parent.run_id, away / parent.run_id)
    starts = [
        {"run": parent.run_id},
        {"run": "dense"},
        {"checkpoint": str(away / parent.run_id)},
        {"checkpoint": str(away / parent.run_id / "checkpoint")},
    ]
    names = {identity_of(validate(child(corpus, start)), family)[0] for start in starts}
    assert len(names) == 1
    others = {identity_of(validate(child(corpus, start)), family)[0] for start in (None, {"run": "dsa"}, PARENT)}
    assert len(others | names) == 4


def test_without_a_start_the_identity_is_what_it_was(corpus: Path, tmp_path: Path) -> None:
    spec = validate(child(corpus, None))
    assert start_digest(spec, tmp_path) is None
    assert identity_of(spec, tmp_path)[1].keys() == {"corpus", "tokenizer"}


def test_an_interrupted_child_goes_on_without_its_parent(corpus: Path, family: Path, tmp_path: Path) -> None:
    """It resumes from a checkpoint of its own, and keeps what its record says of its origin."""
    values = child(corpus, {"checkpoint": str(tmp_path / "origin")}, engine={"device": "cpu", "checkpoint_every": 2})
    shutil.copytree(family / parent_of(family).run_id, tmp_path / "origin" / parent_of(family).run_id)
    values["start"] = {"checkpoint": str(tmp_path / "origin" / parent_of(family).run_id)}
    spec = validate(values)
    calm = single_run.train(spec, tmp_path / "calm")
    stopped_at_a_checkpoint(spec, tmp_path / "wild")
    shutil.rmtree(tmp_path / "origin" / parent_of(family).run_id / "checkpoint")
    again = single_run.train(spec, tmp_path / "wild")
    assert (again.run_id, again.environment["start"]) == (calm.run_id, calm.environment["start"])
    ours, theirs = (
        load_file(tmp_path / store / calm.run_id / "checkpoint/model.safetensors") for store in ("calm", "wild")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def swept(corpus: Path, store: Path, notify: Any = print, retry: bool = False, **changes: Any) -> list[Any]:
    sweep = Sweep(child(corpus, **changes), {"attention.kind": ["dense", "dsa"], "seed": [1, 2]})
    specs = sweep.runs()
    planned = plan.plan(specs, store)
    execution = single_run.resolve(specs[0].engine)
    return list(run_sweep(sweep, planned, store, execution, retry_failed=retry, notify=notify))


def test_a_sweep_trains_each_parent_once_and_before_its_children(corpus: Path, tmp_path: Path) -> None:
    records = swept(corpus, tmp_path)
    steps = [record.summary["steps"] for record in records]
    assert sorted(steps) == [4, 4, 4, 4, 6, 6]
    ended = [record.run_id for record in records]
    for record in records:
        if "start" in record.fingerprint:
            assert ended.index(record.fingerprint["start"]) < ended.index(record.run_id)
    sweep = next((tmp_path / "sweeps").glob("*.json"))
    scope = dsabench.compare(tmp_path, sweep=sweep.stem).comparison
    assert [row.seeds for row in scope.rows] == [[1, 2]], "children of one parent are pairs; parents are none of them"
    assert scope.tables[0].setting == ""
    assert [note for note in scope.notes if "2 parents (dense-L32-s1-" in note and "whose own val_loss is" in note]
    assert {run.status for run in plan.plan([validate(child(corpus))], tmp_path)} == {"done"}


def test_a_removed_parent_of_done_children_is_not_trained_again(corpus: Path, tmp_path: Path) -> None:
    swept(corpus, tmp_path)
    for path in tmp_path.glob("dense-*"):
        if read_run(tmp_path, path.name).summary["steps"] == 6:
            shutil.rmtree(path)
    again = swept(corpus, tmp_path)
    assert [record.summary["steps"] for record in again] == [4, 4, 4, 4]
    assert len(list(tmp_path.glob("*-L*"))) == 4


def test_children_of_a_failed_parent_are_not_begun(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainingRun._launch

    def fails(self: TrainingRun, first: int, *rest: Any) -> Any:
        if self.run.start is None and self.spec.seed == 1:
            raise RuntimeError("the parent breaks")
        return honest(self, first, *rest)

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_launch", fails)
        records = swept(corpus, tmp_path, lines.append)
    assert sorted(record.status for record in records) == ["done", "done", "done", "failed"]
    said = [line for line in lines if "2 runs start from dense-L32-s1-" in line]
    assert len(said) == 1 and "the parent breaks" in said[0] and "--retry-failed" in said[0]
    assert len(list(tmp_path.glob("*-s1-*"))) == 1, "nothing half made"
    with pytest.raises(StoreError, match=r"1 run starts from dense-L32-s1-\w+, which is failed"):
        single_run.train(validate(child(corpus)), tmp_path)
    assert len(swept(corpus, tmp_path, retry=True)) == 6


def damaged(folder: Path) -> None:
    path = folder / "checkpoint/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


WIDE = {"d_model": 48, "n_layers": 2, "n_heads": 2, "d_ff": 32, "n_experts": 2, "experts_per_token": 1}
REFUSED: dict[str, tuple[dict[str, Any], type[DsabenchError], str]] = {
    "no such run": ({"start": {"run": "dense-L99"}}, StoreError, r"start\.run = dense-L99: .*no run starts with that"),
    "no such folder": ({"start": {"checkpoint": "/no/such"}}, StoreError, r"start\.checkpoint = /no/such: no such"),
    "another width": ({"start": {"run": "dense"}, "model": WIDE}, SpecError, r"model\.d_model is 32, and here 48"),
    "another tokenizer": ({"start": {"run": "dense"}, "tokenizer": 280}, DataError, r"another tokenizer .*digest"),
    "a parent of another width": (
        {"start": {"parent": {"attention.kind": "dense", "model.d_ff": 16}}},
        SpecError,
        r"start\.parent is another model than this spec's: model\.d_ff is 16, and here 32",
    ),
    "an unknown field": ({"start": {"parent": {"train.stesp": 5}}}, SpecError, r"did you mean steps\?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_origin_is_refused_in_one_message(case: str, corpus: Path, family: Path, tmp_path: Path) -> None:
    changes, kind, message = REFUSED[case]
    store = tmp_path / "runs"
    shutil.copytree(family, store)
    values = child(corpus, **{"start": PARENT, **changes})
    if "tokenizer" in values:
        values["data"] = {**values["data"], "vocab_size": values.pop("tokenizer")}
    there = sorted(store.glob("*-L*"))
    with pytest.raises(kind, match=message) as caught:
        single_run.train(validate(values), store)
    assert "\n" not in str(caught.value)
    assert sorted(store.glob("*-L*")) == there, "nothing half made"


def test_weights_of_other_shapes_are_named(corpus: Path, family: Path, tmp_path: Path) -> None:
    """A bare folder has no spec that could be compared: the shapes say it."""
    shutil.copytree(family / parent_of(family).run_id / "checkpoint", tmp_path / "bare")
    values = child(corpus, {"checkpoint": str(tmp_path / "bare")}, model=WIDE)
    with pytest.raises(SpecError, match=r"embedding\.weight is 300 x 32, and here 300 x 48; .*and \d+ more"):
        single_run.train(validate(values), family)


def test_a_damaged_or_failed_origin_is_refused(corpus: Path, family: Path, tmp_path: Path) -> None:
    shutil.copytree(family, tmp_path / "runs")
    damaged(tmp_path / "runs" / parent_of(family).run_id)
    with pytest.raises(StoreError, match="its checkpoint is damaged"):
        single_run.train(validate(child(corpus, {"run": "dense"})), tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / parent_of(family).run_id / "checkpoint")
    with pytest.raises(StoreError, match="has no checkpoint"):
        single_run.train(validate(child(corpus, {"run": "dense"})), tmp_path / "runs")
