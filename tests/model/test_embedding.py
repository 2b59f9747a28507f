"""model.embedding_std: what the embedding starts with, and what enters the first block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsabench.audit.soundness import shared_start
from dsabench.model.transformer import build
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate

VOCABULARY = 2000


def spec_of(std: float | None, d_model: int = 48, **attention: Any) -> RunSpec:
    sizes = {"d_model": d_model, "n_layers": 1, "n_heads": 2, "d_ff": 16, "embedding_std": std}
    return validate({"length": 16, "attention": attention or {"kind": "dense"}, "model": sizes})


@pytest.mark.parametrize("std", [None, 0.02, 1.0])
def test_the_embedding_starts_with_it(std: float | None) -> None:
    weight = build(spec_of(std), VOCABULARY).embedding.weight
    assert weight.std().item() == pytest.approx(std or 1 / 48, rel=0.01)
    assert abs(weight.mean().item()) < 0.01 * weight.std().item()


@pytest.mark.parametrize("std", [None, 0.02, 1.0, 7.0])
def test_the_residual_stream_starts_at_variance_1_whatever_it_is(std: float | None) -> None:
    model, entered = build(spec_of(std), VOCABULARY).double(), []
    model.layers()[0].register_forward_pre_hook(lambda block, inputs: entered.append(inputs[0]))
    model(torch.arange(VOCABULARY)[None, :800])
    assert entered[0].std().item() == pytest.approx(1, rel=0.02)


def test_only_the_outputs_scale_with_it() -> None:
    """In fp64: the blocks see the same numbers, so that logits are proportional to the embedding's scale."""
    tokens_BT = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    small, large = (build(spec_of(std), VOCABULARY).double()(tokens_BT).logits_BTV for std in (0.5, 2.0))
    assert torch.allclose(4 * small, large, rtol=1e-6, atol=1e-9)


def test_null_is_1_over_d_model_and_names_no_run_anew() -> None:
    default, null = (
        validate({"model": {"d_model": 48, "n_heads": 2}}),
        validate({"model": {"d_model": 48, "n_heads": 2, "embedding_std": None}}),
    )
    assert run_id(default, {}) == run_id(null, {}) != run_id(spec_of(1.0), {})
    assert default.model.embedding_scale == 48.0
    assert torch.equal(build(spec_of(None), 50).embedding.weight, build(spec_of(1 / 48), 50).embedding.weight)


def test_shared_weights_stay_shared() -> None:
    found = shared_start(spec_of(1.0, kind="dsa", indexer={"n_heads": 2, "head_dim": 8}), VOCABULARY)
    assert "embedding.weight" in found.same
    assert not found.different
