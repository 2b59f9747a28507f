"""Index lists of selections without an indexer: the sets of their scores, and attention over them by the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import ascending

from dsabench.attention.ablations import block, oracle, selecting
from dsabench.attention.ablations.selecting import SelectingAttention
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import variant
from dsabench.spec.run import RunSpec, validate

POSITIONAL = ("sliding_window", "sink_window", "strided")
KINDS = (*POSITIONAL, "random", "oracle", "block")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU; the other fused ones stay out of it."""
    monkeypatch.setattr(selecting, "runs_on", lambda device: True)


def spec_of(kind: str, length: int, k: int, backend: str = "auto", **fields: Any) -> RunSpec:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "n_experts": 2, "n_kv_heads": fields.pop("g", 1)}
    return validate({"length": length, "attention": {"kind": kind, "top_k": k, "backend": backend, **fields}, "model": model})


def layer_of(spec: RunSpec, layer: int = 0) -> SelectingAttention:
    module = variant(spec.attention.kind)(spec, layer)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    assert isinstance(module, SelectingAttention)
    return module


def ids_of(length: int, seed: int) -> Tensor:
    """Documents of two rows, by chance."""
    return (torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.15).cumsum(1)


def heads_of(spec: RunSpec, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = spec.model
    q = torch.randn(2, spec.length, model.n_heads, model.head_dim, generator=generator)
    return q, torch.randn(2, spec.length, model.kv_heads, model.head_dim, generator=generator)


def both(spec: RunSpec, context: AttentionContext, seed: int = 0, layer: int = 0) -> tuple[Tensor, Tensor]:
    """The lists, and the selection of the scores; of both rows."""
    module, (q, k) = layer_of(spec, layer), heads_of(spec, seed)
    n = min(module.selecting.n_selected(spec.length), spec.length)
    with torch.no_grad():
        found = module.select(q, k, n, context)
        scores = module.scores(q, k, context).expand(2, -1, -1)
    assert found.dtype == torch.int32
    return found.expand(2, -1, -1), ascending(reference.select_top_k(scores, context.allowed.expand(scores.shape), n))


sizes = st.tuples(st.integers(2, 45), st.integers(1, 50), st.booleans(), st.integers(0, 9))


@pytest.mark.parametrize("kind", POSITIONAL)
@given(size=sizes, sinks=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_lists_by_position_are_the_selection_of_the_scores(
    kind: str, size: tuple[int, int, bool, int], sinks: int
) -> None:
    length, k, packed, seed = size
    more = {"n_sinks": sinks} if kind == "sink_window" else {}
    spec = spec_of(kind, length, k, **more)
    module = layer_of(spec)
    assert isinstance(module, selecting.PositionalAttention)
    context = AttentionContext(torch.arange(length), document_ids_BT=ids_of(length, seed) if packed else None)
    n = min(k, length)
    found = module.keys(selecting.first_keys(context), n)
    scores = module.scores(torch.empty(0), torch.empty(0), context).expand(len(found), -1, -1)
    expected = ascending(reference.select_top_k(scores, context.allowed.expand(scores.shape), n))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["random", "oracle", "block"])
@given(size=sizes, block_size=st.integers(1, 9), slab=st.sampled_from([1, 300, 2**24]))
@settings(max_examples=12, deadline=None)
def test_lists_by_kernels_are_the_selection_of_the_scores(
    kind: str, size: tuple[int, int, bool, int], block_size: int, slab: int
) -> None:
    length, k, packed, seed = size
    more = {"block_size": block_size} if kind == "block" else {}
    spec = spec_of(kind, length, k, **more)
    ids = ids_of(length, seed) if packed else None
    context = AttentionContext(torch.arange(length), document_ids_BT=ids, step=torch.tensor([seed * 7919]))
    with pytest.MonkeyPatch.context() as patch:
        for module in (block, oracle):
            patch.setattr(module, "SLAB_NUMBERS", slab)
        found, expected = both(spec, context, seed, layer=seed % 2)
    assert torch.equal(found, expected)
