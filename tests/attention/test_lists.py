"""Index lists of selections without an indexer: the sets of their scores, and attention over them by the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from sparse_reference import ascending, error
from watch import Watch

from dsabench.attention import base, with_backends
from dsabench.attention.ablations import moba, oracle, random, selecting
from dsabench.attention.ablations.selecting import SelectingAttention
from dsabench.attention.ablations.sliding_window import SlidingWindow
from dsabench.attention.ablations.triton import index_lists
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import variant
from dsabench.audit import gate
from dsabench.engine.backend import backend
from dsabench.engine.device import Execution
from dsabench.errors import SpecError
from dsabench.model.transformer import build, outline
from dsabench.spec.attention import SlidingWindowSpec
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import check_capture, check_causal, check_dense_at_full_k, check_documents_are_separate

POSITIONAL = ("sliding_window", "sink_window", "strided")
KINDS = (*POSITIONAL, "random", "oracle", "moba")
CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
GPU = Execution(torch.device("cuda", 0), "bf16", graph=True, deterministic=False, fused=True)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU; the other fused ones stay out of it."""
    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)


def spec_of(kind: str, length: int, k: int, backend: str = "auto", **fields: Any) -> RunSpec:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "n_experts": 2, "n_kv_heads": fields.pop("g", 1)}
    if fields.pop("latent", False):
        ranks = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
        model |= {"n_kv_heads": None, "attention_layout": "latent", "latent": ranks}
    return validate(
        {
            "length": length,
            "attention": {"kind": kind, "top_k": k, "selection_backend": backend, **fields},
            "model": model,
        }
    )


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


lengths = st.integers(2, 45).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length + 2)))
sizes = st.tuples(lengths, st.booleans(), st.integers(0, 9)).map(lambda drawn: (*drawn[0], *drawn[1:]))


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


@pytest.mark.parametrize("kind", ["random", "oracle", "moba"])
@given(size=sizes, block_size=st.integers(1, 9), slab=st.sampled_from([1, 300, 2**24]))
@settings(max_examples=30, deadline=None)
def test_lists_by_kernels_are_the_selection_of_the_scores(
    kind: str, size: tuple[int, int, bool, int], block_size: int, slab: int
) -> None:
    length, k, packed, seed = size
    more = {"block_size": block_size} if kind == "moba" else {}
    spec = spec_of(kind, length, k, **more)
    ids = ids_of(length, seed) if packed else None
    context = AttentionContext(torch.arange(length), document_ids_BT=ids, step=torch.tensor([seed * 7919]))
    with pytest.MonkeyPatch.context() as patch:
        for module in (moba, oracle):
            patch.setattr(module, "SLAB_NUMBERS", slab)
        found, expected = both(spec, context, seed, layer=seed % 2)
    assert torch.equal(found, expected)


def test_of_equal_hashes_the_first_keys_are_kept() -> None:
    """A query whose k-th and next highest hashes are equal: one of 20,000 has such a pair among 40 keys."""
    key_S = torch.arange(40)
    hashed_QS = random._mix(torch.arange(1 << 17)[:, None] + key_S * 0x27D4EB2F) >> 8
    highest_QS = hashed_QS.sort(-1, descending=True).values
    query, place = (highest_QS[:, 1:] == highest_QS[:, :-1]).nonzero()[0].tolist()
    found = index_lists.hashed(torch.full((40,), query, dtype=torch.int32), torch.zeros(1, 40).int(), place + 1)
    scores_TS = hashed_QS[query].float().expand(40, 40)
    expected = reference.select_top_k(scores_TS, key_S <= key_S[:, None], place + 1)
    assert torch.equal(found[0], ascending(expected))


def learnt(spec: RunSpec, stage: Any, ids: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The output of one layer, and the gradients of its parameters and its input."""
    module = layer_of(spec).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x, d_out = (torch.randn(2, spec.length, 16, generator=generator).to(dtype) for _ in range(2))
    capture: dict[int, base.Selection] | None = {} if stage == "dense" else None  # which selects, and changes nothing
    context = AttentionContext(torch.arange(spec.length), stage, ids, capture, torch.tensor([5]))
    module.prepare(context)
    out = module(x.requires_grad_(), context).out_BTD
    (out * d_out).sum().backward()
    assert x.grad is not None
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {"out": out.detach(), "x": x.grad, **grads}


@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_by_lists_is_the_masked_one_in_fp64(interpreted: None, kind: str, documents: bool, stage: str) -> None:
    """At an odd length, with unions where neighbours share, and heads that share keys."""
    ids = ids_of(21, 3) if documents else None
    sizes = {"g": 2 if documents else 1, **({"block_size": 2} if kind == "moba" else {})}
    expected = learnt(spec_of(kind, 21, 5, "masked", **sizes), stage, ids, torch.float64)
    found = learnt(spec_of(kind, 21, 5, "triton", **sizes), stage, ids, torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert error(found[name], value) < 1e-5, name


@pytest.mark.parametrize("kind", others_slow(KINDS, 0, 4))
def test_a_layer_of_latents_by_lists_is_the_masked_one_in_fp64(interpreted: None, kind: str) -> None:
    fields = {"latent": True, **({"block_size": 2} if kind == "moba" else {})}
    expected = learnt(spec_of(kind, 21, 5, "masked", **fields), "sparse", ids_of(21, 3), torch.float64)
    found = learnt(spec_of(kind, 21, 5, "triton", **fields), "sparse", ids_of(21, 3), torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert error(found[name], value) < 1e-5, name


@pytest.mark.parametrize("kind", POSITIONAL)
def test_a_list_by_position_is_made_once_for_all_layers_and_rows(kind: str) -> None:
    spec = spec_of(kind, 12, 4)
    context = AttentionContext(torch.arange(12))
    first, second = (layer_of(spec, layer)._once(context) for layer in (0, 1))  # type: ignore[attr-defined]
    assert first is second
    assert first[0].shape == (1, 12, 4)
    packed = AttentionContext(torch.arange(12), document_ids_BT=ids_of(12, 1))
    assert layer_of(spec)._once(packed)[0].shape == (2, 12, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", others_slow(KINDS, 0, 3))
@pytest.mark.parametrize(
    "check",
    others_slow([check_causal, check_documents_are_separate, check_dense_at_full_k, check_capture], 1, 2, 3),
)
def test_contract(interpreted: None, kind: str, check: Callable[[RunSpec], None]) -> None:
    check(spec_of(kind, 6, 3, "triton"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_l_by_l_elements(interpreted: None, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Forward and backward, with documents, and as the recall of a selection is captured."""
    length = 48
    for module in (moba, oracle):
        monkeypatch.setattr(module, "SLAB_NUMBERS", length * 8)
    monkeypatch.setattr(base, "RECALL_PAIRS", length * 16)
    ids = (torch.arange(length) // 30)[None]
    more = {"block_size": 4} if kind == "moba" else {}

    def use(backend: str) -> None:
        module = layer_of(spec_of(kind, length, 4, backend, **more))
        for documents in (None, ids):
            context = AttentionContext(torch.arange(length), "sparse", documents, {}, whole_mass=False)
            module.prepare(context)
            module(torch.randn(1, length, 16, requires_grad=True), context).out_BTD.sum().backward()

    with Watch(length**2):
        use("triton")
        with pytest.raises(AssertionError, match="gives"):
            use("masked")


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_lists_where_they_pay_and_run(kind: str) -> None:
    def chosen(length: int, n_kv_heads: int | None, execution: Execution = GPU, **fields: Any) -> str | None:
        model = {"n_heads": 8, "n_kv_heads": n_kv_heads, **fields}
        return backend(
            validate({"length": length, "attention": {"kind": kind}, "model": model, "train": {"batch_size": 1}}),
            execution,
        )

    assert [chosen(length, 1) for length in (1023, 1024)] == ["masked", "triton"]
    assert [chosen(length, None) for length in (8191, 8192)] == ["masked", "triton"]
    assert chosen(4096, 1, CPU) == "masked"
    assert chosen(4096, 1, head_width=512) == "masked"


def test_lists_that_cannot_be_are_refused() -> None:
    attention = {"kind": "strided", "selection_backend": "triton"}
    with pytest.raises(SpecError, match=r"attention.selection_backend = triton cannot run: a head's width .* is 512"):
        outline(validate({"attention": attention, "model": {"head_width": 512}}), 31)
    module, context = layer_of(spec_of("random", 6, 3, "triton")), AttentionContext(torch.arange(6))
    with pytest.raises(SpecError, match="triton cannot run: it needs a CUDA GPU"):
        module(torch.randn(1, 6, 16), context)


class ByScores(SelectingAttention):
    """A variant of a plugin, which has scores alone."""

    spec_class = SlidingWindowSpec
    scores = SlidingWindow.scores


class Farther(SlidingWindow):
    """A variant of a plugin that changes the scores of one that is there: its keys are another's."""

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        return -super().scores(q_BTHD, k_BSGD, context)


class OtherScores(random.Random):
    scores = SlidingWindow.scores


class Both(Farther):
    def keys(self, first_BT: Tensor, k: int) -> Tensor:
        return first_BT[..., None].expand(-1, -1, k)


def test_scores_alone_have_masks_alone() -> None:
    model = {"n_heads": 8, "n_kv_heads": 1}
    spec = validate({"length": 4096, "attention": {"kind": "sliding_window"}, "model": model})
    assert SlidingWindow.backend(spec, None) == "triton"
    assert ByScores.backend(spec, None) == "masked"
    assert Farther.backend(spec, None) == OtherScores.backend(spec, None) == "masked"
    assert Both.backend(spec, None) == "triton"
    with pytest.raises(SpecError, match="sliding_window has scores and no index lists"):
        ByScores.backend(spec_of("sliding_window", 64, 8, "triton"), None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_estimate_follows_the_backend(kind: str) -> None:
    """Quadratic with masks; of lists seven bytes for each of a query's keys, once where one serves all layers."""

    def kept(backend: str, length: int) -> float:
        attention = {"kind": kind, "top_k": 1024, "selection_backend": backend}
        spec = validate({"length": length, "attention": attention, "train": {"batch_size": 1}})
        return outline(spec, 31).layers()[0].attention.kept_per_pair(2) * length

    assert kept("masked", 32_768) == 2 * kept("masked", 16_384)
    layers = RunSpec().model.n_layers if kind in POSITIONAL else 1
    assert kept("triton", 32_768) == kept("triton", 16_384) == 7 * 1024 / layers


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_runs_over_lists(interpreted: None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small copies too."""
    model, execution = build(spec_of(kind, 6, 3, "triton"), 31), CPU
    monkeypatch.setattr(gate, "resolved", lambda spec, execution: spec)
    found = gate.audit_model(model, execution)
    assert found.crash is None
    assert found.first is None
