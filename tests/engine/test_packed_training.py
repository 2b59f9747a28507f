"""Training on packed documents: no influence from one into another, paired batches, resuming, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsabench.attention import scaled_dot_product
from dsabench.data import TokenData, cut, prepare
from dsabench.engine import loop
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.selection_recall import keys_seen, selection_recall
from dsabench.engine.slot import Slots
from dsabench.engine.staged_batches import staged
from dsabench.engine.step import METRICS
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import STAGES

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
LENGTH, VOCAB = 48, 257
KINDS: dict[str, dict[str, Any]] = {
    kind: {"kind": kind, "top_k": 6} for kind in ("sliding_window", "strided", "random", "oracle", "moba")
}
KINDS["sink_window"] = {"kind": "sink_window", "top_k": 6, "n_sinks": 2}
KINDS["dense"] = {"kind": "dense"}
for backend in ("masked", "reference"):
    KINDS[f"dsa {backend}"] = {"kind": "dsa", "top_k": 6, "backend": backend, "indexer": {"n_heads": 2, "head_dim": 8}}


@pytest.fixture
def data(tmp_path: Path) -> TokenData:
    """Documents of 5 to 45 bytes, all shorter than a window; and one that is longer."""
    generator = np.random.default_rng(1)
    for i in range(30):
        size = 400 if i == 7 else int(generator.integers(5, 45))
        (tmp_path / f"{i:02}.txt").write_text("".join(generator.choice(list("abcdefgh "), size)), encoding="utf-8")
    data = prepare(spec_of("dense", tmp_path).data)
    assert isinstance(data, TokenData)
    return data


def spec_of(name: str, folder: Path | str = ".", **train: Any) -> RunSpec:
    return validate(
        {
            "length": LENGTH,
            "attention": KINDS[name],
            "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 8, "n_experts": 2, "experts_per_token": 1},
            "data": {"source": f"path:{folder}/*.txt", "tokenizer": "bytes", "packing": "documents", "val_share": 0.3},
            "train": {"steps": 8, "batch_size": 4, "warmup_steps": 2, "eval_every": 4, "log_every": 2, **train},
            "engine": {"device": "cpu", "checkpoint_every": 4},
        }
    )


def model_of(spec: RunSpec) -> Transformer:
    """Weights large enough that what leaks shows."""
    model = build(spec, VOCAB)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_no_document_of_a_batch_sees_another(name: str, data: TokenData) -> None:
    """Other tokens in the second document of every window of a training batch: nothing else changes."""
    spec = spec_of(name)
    batch = cut(data, LENGTH).batch(1, 2, 4, 8)
    assert batch.documents is not None and batch.documents[:, -1].min() >= 1
    tokens, ids = torch.from_numpy(batch.tokens[:, :-1]).long(), torch.from_numpy(batch.documents)
    second = ids == 1
    assert second.any() and (ids == 2).any()
    other = torch.where(second, (tokens + 5) % VOCAB, tokens)
    model = model_of(spec)
    for stage in STAGES:
        packed = ForwardPass(stage=stage, document_ids_BT=ids)
        with torch.no_grad():
            before, after = (model(x, packed).logits_BTV for x in (tokens, other))
        assert float((after - before)[~second].abs().max()) < 1e-5
        assert float((after - before)[second].abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["dense", "dsa masked"])
def test_the_step_trains_on_what_the_windows_say(name: str, data: TokenData) -> None:
    """Its first loss is that of each document alone, over the targets inside it; cut in two, nearly."""
    spec = spec_of(name)
    batch = cut(data, LENGTH).batch(spec.seed, 0, 4, 8)
    assert batch.documents is not None and batch.scored is not None
    model, losses = build(spec, VOCAB), []
    for row, ids, scored in zip(batch.tokens.astype(np.int64), batch.documents, batch.scored, strict=True):
        for document in np.unique(ids):
            places = np.flatnonzero(ids == document)
            with torch.no_grad():
                alone = model(torch.from_numpy(row[places])[None], ForwardPass(stage="dense"))
            log_p_TV = alone.logits_BTV[0].log_softmax(-1)
            losses += [-float(log_p_TV[i, row[place + 1]]) for i, place in enumerate(places) if scored[place]]
    for micro, tolerance in ((4, 1e-5), (2, 3e-2)):  # windows of a few targets more or less weigh the same
        slot = Slots().take(spec, VOCAB, CPU)
        slot.begin(spec)
        slot.step.micro_batch = micro
        history = slot.step.run(0, "dense", *staged([batch], CPU.device))
        assert float(history[0, METRICS.index("loss")]) == pytest.approx(np.mean(losses), abs=tolerance)


class Kept:
    """A sink in memory that can stop the run after a checkpoint, as a kill would."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        self.folder, self.stop_after, self.records, self.saved = folder, stop_after, [], 0

    def metrics(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def rewind(self, step: int) -> None:
        self.records = [record for record in self.records if record["step"] <= step]

    def checkpoint(self) -> Path | None:
        return self.folder / str(self.saved) if self.saved else None

    def replace_checkpoint(self, write: Any) -> None:
        folder = self.folder / str(self.saved + 1)
        folder.mkdir(parents=True)
        write(folder)
        self.saved += 1
        if self.saved == self.stop_after:
            raise KeyboardInterrupt


def test_a_run_trains_evaluates_and_resumes_to_the_same_bits(data: TokenData, tmp_path: Path) -> None:
    spec = spec_of("dsa masked", tmp_path)
    whole, broken = Kept(tmp_path / "whole"), Kept(tmp_path / "broken", stop_after=1)
    expected = loop.to_the_end(loop.train_steps(PreparedRun(spec, data, CPU, whole)))
    with pytest.raises(KeyboardInterrupt):
        loop.to_the_end(loop.train_steps(PreparedRun(spec, data, CPU, broken)))
    found = loop.to_the_end(loop.train_steps(PreparedRun(spec, data, CPU, broken)))
    for name in ("val_loss", "train_loss", "val_accuracy", "mass_recall", "unigram_loss"):
        assert found[name] == expected[name], name
    assert expected["task_accuracy"] is None, "scored, and yet no task"
    assert expected["val_bits_per_byte"] > 0
    assert expected["attention_backend"] == "masked"
    for a, b in zip(whole.records, broken.records, strict=True):
        assert [a.get(name) for name in ("step", *METRICS)] == [b.get(name) for name in ("step", *METRICS)]


def test_attention_is_told_how_many_documents_a_window_has(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every training step and evaluation: flash attention takes packed documents only with a bound of them."""
    honest, told = scaled_dot_product.attention, set[int | None]()

    def attention(*given: Any) -> Any:
        told.add(given[-1])
        return honest(*given)

    monkeypatch.setattr(scaled_dot_product, "attention", attention)
    loop.to_the_end(loop.train_steps(PreparedRun(spec_of("dense"), data, CPU, Kept(tmp_path))))
    assert told == {cut(data, LENGTH).evaluation("val").most_documents}
    assert None not in told


def test_evaluation_and_recall_stay_inside_documents(data: TokenData) -> None:
    spec = spec_of("dsa masked")
    model, batch = model_of(spec), cut(data, LENGTH).evaluation("val", LENGTH * 6)
    assert batch.documents is not None and batch.scored is not None
    tokens, ids = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.documents)
    captured: dict[int, Any] = {}
    packed = ForwardPass(document_ids_BT=ids, capture=captured)
    with torch.no_grad():
        log_p = model.eval()(tokens[:, :-1], packed).logits_BTV.log_softmax(-1)
    nll = -log_p.gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    result = Evaluator(model, CPU).evaluate(batch)
    assert result["loss"] == pytest.approx(nll[batch.scored].mean(), abs=1e-5)
    seen = keys_seen(batch.documents, len(batch.tokens), LENGTH)
    for row, counts in zip(batch.documents, seen, strict=True):
        assert counts.tolist() == [int((row[: t + 1] == row[t]).sum()) for t in range(LENGTH)]
    recalls = []
    for one in captured.values():
        inside = (one.mass_BTS.gather(-1, one.selected_BTK.clamp(min=0)) * (one.selected_BTK >= 0)).sum(-1).numpy()
        recalls.append(inside[seen > 6].mean())
    found = selection_recall(model, batch, CPU)
    assert found is not None
    assert found["mass_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["mass_recall_chance"] == pytest.approx((6 / seen[seen > 6]).mean())


def test_all_attentions_and_no_other_packing_share_batches_and_ids(data: TokenData) -> None:
    batches = [cut(data, LENGTH).batch(3, 1, 4, 8).tokens for _ in KINDS]
    assert all((batch == batches[0]).all() for batch in batches)
    plain = validate({"length": 64, "data": {"packing": "none"}})
    assert run_id(plain, {}) == run_id(validate({"length": 64}), {}), "old ids stay"
    assert run_id(validate({"length": 64, "data": {"packing": "documents"}}), {}) != run_id(plain, {})
