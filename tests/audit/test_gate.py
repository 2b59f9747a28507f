"""The causality gate lets every shipped variant through, and refuses what cannot be audited."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from audited import INDEXER, audit, peek, plant, spec_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench.attention import registry
from dsabench.attention.base import AttentionContext, AttentionOutput
from dsabench.attention.dsa.layer import DSA
from dsabench.audit import causality, gate
from dsabench.engine.device import resolve
from dsabench.errors import SpecError
from dsabench.model.transformer import build

pytestmark = pytest.mark.usefixtures("no_audit_remembered")

# What must pass.

SHIPPED: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "dsa": {"kind": "dsa", "indexer": INDEXER},
    "dsa top_k": {"kind": "dsa", "top_k": 5, "indexer": INDEXER},
    "dsa k=1": {"kind": "dsa", "top_k": 1, "indexer": INDEXER},
    "dsa k>L": {"kind": "dsa", "top_k": 500, "indexer": INDEXER},
    "dsa untrained, no warm-up": {"kind": "dsa", "indexer": {**INDEXER, "loss": "none", "warmup_share": 0.0}},
    "dsa shared": {"kind": "dsa", "top_k": 5, "indexer": {**INDEXER, "share_layers": 2}},
    "dsa reference": {"kind": "dsa", "top_k": 5, "backend": "reference", "indexer": INDEXER},
}


def test_every_registered_variant_is_among_them() -> None:
    registry.kinds()
    shipped = {kind for kind, cls in registry.registered().items() if cls.__module__.startswith("dsabench.")}
    named = {spec["kind"] for spec in SHIPPED.values()}
    for kind in shipped - named:  # a new one with its own defaults
        assert not audit(spec_of(40, kind=kind)).leak, kind


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_variants_pass(name: str) -> None:
    found = audit(spec_of(**SHIPPED[name]))
    assert not found.leak, str(found.first)
    assert found.boundaries >= 11 and found.copies


def test_a_hybrid_passes_and_its_copies_hold_every_layer() -> None:
    shared = {"kind": "dsa", "indexer": {**INDEXER, "share_layers": 2}}
    found = audit(
        spec_of(kind="hybrid", layers=["dense", shared, "sliding_window", shared], top_k=5, model={"n_layers": 4})
    )
    assert not found.leak, str(found.first)
    assert found.copies


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SHIPPED)),
    length=st.integers(2, 90),
    seed=st.integers(0, 2**32 - 1),
    n_kv_heads=st.sampled_from([None, 1, 2]),
    experts=st.sampled_from([(1, 1), (4, 2), (8, 1), (16, 3)]),
    dropout=st.sampled_from([0.0, 0.1, 0.6]),
)
def test_no_false_alarm(
    name: str, length: int, seed: int, n_kv_heads: int | None, experts: tuple[int, int], dropout: float
) -> None:
    model = {
        "n_kv_heads": n_kv_heads, "dropout": dropout, "n_experts": experts[0], "experts_per_token": experts[1],
        "n_layers": 1 + seed % 4,
    }  # fmt: skip
    spec = spec_of(length, seed, model=model, **SHIPPED[name])
    found = gate.audit_model(build(spec, 101), resolve(spec.engine))
    assert found.crash is None
    assert not found.leak, str(found.first)


def test_the_process_is_as_it_was() -> None:
    model = build(spec_of(), 101).eval()
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not gate.audit_model(model, resolve(model.spec.engine)).leak
    assert torch.equal(state, torch.get_rng_state()) and precision == torch.get_float32_matmul_precision()
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_runs_of_other_seeds_are_not_audited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(spec_of(seed=1))
    monkeypatch.setattr(gate, "audit_model", None)
    assert audit(spec_of(seed=2)) is first
    with pytest.raises(TypeError):
        audit(spec_of(seed=2, length=81))


def test_no_memory_for_the_audit_is_not_the_attentions_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    plant(monkeypatch, hungry)
    spec = spec_of()
    found = gate.refuse_leaks(spec, 101, resolve(spec.engine))
    assert isinstance(found.crash, torch.OutOfMemoryError), "the runner knows what to do with it"


def test_what_is_no_attention_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DSA, "forward", lambda self, x_BTD, context: x_BTD)
    with pytest.raises(SpecError, match="attention dsa: forward returned Tensor; an AttentionOutput is expected"):
        audit(spec_of())
    monkeypatch.setattr(DSA, "forward", lambda self, x_BTD, context: AttentionOutput(x_BTD[:, :-1]))
    with pytest.raises(SpecError, match=r"returned out of shape \(2, 79, 16\) for an input of \(2, 80, 16\)"):
        audit(spec_of())


def test_nan_is_called_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda self, x, c: peek(x).sum(-1, keepdim=True).sub(1).log())
    with pytest.raises(SpecError, match="attention dsa: forward returned NaN or infinity, first at position 0"):
        audit(spec_of())


def test_a_crash_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        raise ZeroDivisionError

    plant(monkeypatch, broken)
    spec = spec_of()
    found = gate.audit(spec, 101, resolve(spec.engine))
    assert found.record()["result"] == "crashed"
    assert isinstance(found.crash, SpecError) and "forward raised ZeroDivisionError" in str(found.crash)


def test_relative_change() -> None:
    base = torch.tensor([[[1.0, -1.0], [2.0, 2.0], [0.0, 0.0]]])
    changed = base.clone()
    changed[0, :, 0] += torch.tensor([0.5, 0.5, 0.5])
    found = causality.relative_change(base, changed)[0].tolist()
    layer = math.sqrt((1 + 4 + 0) / 3)
    assert found == pytest.approx([0.5, 0.25, 0.5 / (0.1 * layer)])
    assert causality.relative_change(0 * base, changed - base)[0].tolist() == pytest.approx([0.5] * 3)
    changed[0, 1, 1] = torch.nan
    assert math.isnan(causality.relative_change(base, changed)[0, 1])
