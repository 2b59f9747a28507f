"""The short convolution: its formula, documents, what it costs, and leaks in it that the audit catches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench import ops
from dsabench.audit import gate
from dsabench.engine.device import resolve
from dsabench.engine.memory_plan import estimate
from dsabench.errors import CheckpointError, SpecError
from dsabench.model import short_convolution
from dsabench.model.transformer import ForwardPass, build, flops_per_window
from dsabench.model.transformers_folder import architecture_of
from dsabench.spec.identity import run_id
from dsabench.spec.run import RunSpec, validate

TINY = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 12}
DSA = {"kind": "dsa", "top_k": 5, "indexer": {"n_heads": 2, "head_dim": 4}}


def spec_of(taps: int | None = 3, attention: dict[str, Any] | None = None, **fields: Any) -> RunSpec:
    model = {**TINY, **({} if taps is None else {"short_convolution": taps})}
    return validate({"length": 24, "attention": attention or {"kind": "dense"}, "model": model, **fields})


def test_it_is_a_depthwise_convolution_with_its_input_added() -> None:
    x, weight = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    expected = x + F.conv1d(F.pad(x.mT, (3, 0)), weight.flip(1)[:, None], groups=6).mT
    torch.testing.assert_close(ops.short_convolution(x, weight, None), expected)


def test_no_document_sees_another_one() -> None:
    """Packed, each document has what it has alone."""
    x, weight = torch.randn(1, 10, 6), torch.randn(6, 4)
    begin = torch.tensor([[0, 0, 0, 3, 4, 4, 4, 4, 4, 4]], dtype=torch.int32)
    packed = ops.short_convolution(x, weight, begin)
    parts = [ops.short_convolution(x[:, a:b], weight, None) for a, b in ((0, 3), (3, 4), (4, 10))]
    torch.testing.assert_close(packed, torch.cat(parts, 1))


@torch.no_grad()
def test_the_model_has_it_before_every_attention() -> None:
    model = build(spec_of(3), 40)
    tokens = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(24) >= 11).int().expand(2, -1)
    whole, packed = model(tokens).logits_BTV, model(tokens, ForwardPass(document_ids_BT=ids)).logits_BTV
    assert not torch.allclose(whole[:, 11:], packed[:, 11:], atol=1e-3)
    assert torch.allclose(whole[:, :11], packed[:, :11], atol=1e-5)
    for block in model.layers():
        assert block.short_convolution is not None
        block.short_convolution.weight.zero_()
    without = build(spec_of(None), 40)
    assert torch.allclose(model(tokens).logits_BTV, without(tokens).logits_BTV, atol=1e-5), "other weights are shared"


def test_all_attentions_start_with_the_same_one() -> None:
    dense, dsa = (dict(build(spec_of(4, attention), 40).named_parameters()) for attention in (None, DSA))
    names = [name for name in dense if "short_convolution" in name]
    assert len(names) == 2 and all(torch.equal(dense[name], dsa[name]) for name in names)
    assert float(dense[names[0]].detach().std()) == pytest.approx(4**-0.5, rel=0.3)


def test_runs_without_one_keep_their_ids() -> None:
    fingerprint = {"corpus": "c", "tokenizer": "t"}
    said = validate({"length": 24, "attention": {"kind": "dense"}, "model": {**TINY, "short_convolution": None}})
    assert run_id(spec_of(None), fingerprint) == run_id(said, fingerprint) != run_id(spec_of(3), fingerprint)


@pytest.mark.parametrize("attention", [None, DSA], ids=["dense", "dsa"])
def test_a_convolution_that_looks_ahead_is_caught(
    attention: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch, no_audit_remembered: None
) -> None:
    spec = spec_of(3, attention)
    assert not gate.audit_model(build(spec, 40), resolve(spec.engine)).leak

    def ahead(x_BTD: Tensor, weight_DN: Tensor, begin_BT: Tensor | None) -> Tensor:
        return x_BTD + weight_DN[:, 0] * F.pad(x_BTD, (0, 0, 0, 1))[:, 1:]

    monkeypatch.setattr(short_convolution.ops, "short_convolution", ahead)
    found = gate.audit_model(build(spec, 40), resolve(spec.engine))
    assert found.leak


def test_what_it_costs_is_counted() -> None:
    without, given = build(spec_of(None), 40), build(spec_of(3), 40)
    more = {k: v for k, v in flops_per_window(given, "sparse").items() if k not in flops_per_window(without, "sparse")}
    assert more == {"short convolution": 2 * 6.0 * 24 * 16 * 3}
    sizes = [estimate(model, resolve(given.spec.engine), 2, recompute=False) for model in (without, given)]
    assert sizes[1]["activations"] > sizes[0]["activations"]


def test_transformers_has_no_class_for_it() -> None:
    with pytest.raises(CheckpointError, match=r"model.short_convolution = 3: no class in transformers"):
        architecture_of(spec_of(3))


def test_one_tap_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model\.short_convolution = 1"):
        spec_of(1)
