"""The published mistake as a plugin: the gate names its first leaking position, and only allow_leak trains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsabench import models
from dsabench.audit import gate
from dsabench.data import Windows, prepare
from dsabench.engine.device import resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.errors import LeakError, SpecError
from dsabench.model.transformer import build
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.run import RunSpec, validate
from dsabench.store import load_curves
from dsabench.sweeps import single_run

PLUGIN = shipped_configs()["seed_replica"].parent / "leaky_dsa.py"
SMALL: dict[str, Any] = {
    "length": 16,
    "model.d_model": 32,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.d_ff": 32,
    "model.n_experts": 2,
    "model.experts_per_token": 1,
    "model.dropout": 0.0,
    "attention.indexer": {"n_heads": 2, "head_dim": 8, "loss": "none", "warmup_share": 0.0},
    "data.tokenizer": "bytes",
    "data.max_tokens": 4000,
    "train.steps": 200,
    "train.batch_size": 32,
    "train.learning_rate": 1e-2,
    "train.eval_every": 200,
    "train.eval_tokens": 2048,
    "engine.device": "cpu",
}


pytestmark = pytest.mark.usefixtures("no_audit_remembered")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random letters: whoever predicts them has seen them."""
    folder = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(0)
    for i in range(3):
        (folder / f"{i}.txt").write_text("".join(generator.choice(list("abcdefghijklmnop"), 3000)), encoding="ascii")
    return folder


def published(corpus: Path, kind: str, **more: Any) -> RunSpec:
    """A run of seed_replica, small; with a beta2 that learns in a few steps."""
    sweep = load_sweep("seed_replica")
    for path, value in {**SMALL, "train.beta2": 0.95, "data.source": f"path:{corpus}", **more}.items():
        sweep.set(path, value, "test: ")
    sweep.set_axis("attention.kind", [kind], "test: ")
    return sweep.runs()[0]


@pytest.mark.parametrize(("length", "top_k"), [(16, 8), (33, 5), (40, 2)])
def test_a_row_before_k_sees_the_first_k_tokens_and_no_other_looks_ahead(length: int, top_k: int) -> None:
    spec = validate(
        {
            "length": length,
            "plugins": [str(PLUGIN)],
            "attention": {"kind": "leaky_dsa", "top_k": top_k, "top_k_ratio": None},
            "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
        }
    )
    model = build(spec, 50).double()
    attention = model.layers()[0].attention
    x_BTD = torch.randn(1, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    from dsabench.attention.base import AttentionContext

    def mixed(x: torch.Tensor) -> torch.Tensor:
        return attention(x, AttentionContext(torch.arange(length))).out_BTD[0].sum(-1)

    jacobian_TS = torch.autograd.functional.jacobian(mixed, x_BTD)[:, 0].abs().sum(-1)
    sees_TS = jacobian_TS > 1e-12
    for t in range(length):
        ahead = sees_TS[t, t + 1 :].nonzero().flatten().tolist()
        assert ahead == list(range(max(0, top_k - t - 1))), f"row {t}"


def test_the_gate_refuses_it_and_names_the_first_leaking_position(corpus: Path) -> None:
    spec = published(corpus, "leaky_dsa", allow_leak=False)
    with pytest.raises(
        LeakError, match=r"attention leaky_dsa looks ahead: position 0 changes by .* only positions after 0"
    ):
        gate.refuse_leaks(spec, 101, resolve(spec.engine))
    dense = published(corpus, "dense", allow_leak=False)
    assert not gate.refuse_leaks(dense, 101, resolve(dense.engine)).leak


def test_with_allow_leak_it_trains_wins_by_memory_of_the_future_and_is_marked(corpus: Path, tmp_path: Path) -> None:
    told: list[str] = []
    leaky = single_run.train(published(corpus, "leaky_dsa"), tmp_path, notify=told.append)
    dense = single_run.train(published(corpus, "dense"), tmp_path)
    mended = single_run.train(published(corpus, "dsa", allow_leak=False), tmp_path)
    assert (leaky.summary["leak"], dense.summary["leak"], mended.summary["leak"]) == (True, False, False)
    assert leaky.environment["audit"]["result"] == "leak"
    assert any(line.startswith("LEAK: attention leaky_dsa looks ahead") for line in told)
    assert any(line.startswith("WARNING: data.split = overlapping") for line in told)
    assert leaky.summary["val_loss"] < dense.summary["val_loss"] - 0.5
    assert mended.summary["val_loss"] > dense.summary["val_loss"] - 0.1
    curves = load_curves(tmp_path, [leaky.run_id]).frame
    by_position = curves.loc[curves["loss_by_position"].notna(), "loss_by_position"].iloc[-1]
    assert by_position[:6].mean() < 0.6 * by_position[8:].mean(), "it reads what stands before k"
    assert json.loads(json.dumps(leaky.spec))["plugins"] == [str(PLUGIN)]


def test_its_indexer_never_moves(corpus: Path, tmp_path: Path) -> None:
    spec = published(corpus, "leaky_dsa", **{"train.steps": 5})
    record = single_run.train(spec, tmp_path)
    model = models.load_model(tmp_path, record.run_id)
    start = dict(build(spec, model.vocab_size).named_parameters())
    moved = {name: not torch.equal(value, start[name]) for name, value in model.named_parameters()}
    assert {moved[name] for name in model.attention_own_parameters()} == {False}
    assert moved["embedding.weight"]


def test_it_takes_no_indexer_loss_that_it_would_not_use() -> None:
    values = {"plugins": [str(PLUGIN)], "attention": {"kind": "leaky_dsa", "indexer": {"loss": "kl"}}}
    with pytest.raises(SpecError, match="leaky_dsa has no indexer loss and no warm-up"):
        validate(values)


def test_the_first_loss_is_far_above_uniform(corpus: Path) -> None:
    spec = published(corpus, "dense")
    data = prepare(spec.data)
    model = build(spec, data.vocab_size)
    windows = Windows(data, spec.length).evaluation("val", 1024)
    assert Evaluator(model, resolve(spec.engine)).evaluate(windows)["loss"] > 20
