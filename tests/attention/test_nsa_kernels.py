"""NSA by kernels, through Triton's interpreter, against its masked products in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import others_slow

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from nsa_layers import layer_of, learnt, spec_of
from pooled_layers import error, ids_of, x_of
from watch import Watch

from dsabench.attention import base, with_backends
from dsabench.attention.base import AttentionContext
from dsabench.attention.nsa import streamed
from dsabench.engine.backend import backend
from dsabench.engine.device import Execution
from dsabench.errors import SpecError
from dsabench.model.transformer import outline
from dsabench.spec.run import validate
from dsabench.testing import check_capture, check_documents_are_separate

GPU = Execution(torch.device("cuda", 0), "bf16", graph=True, deterministic=False, fused=True)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU; the other fused ones stay out of it."""
    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_a_layer_by_kernels_is_the_masked_one_in_fp64(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, n_kv_heads: int, documents: bool
) -> None:
    """Outputs and gradients, in slabs of a few queries."""
    monkeypatch.setattr(streamed, "SLAB_NUMBERS", 2 * 4 * 10 * 5)
    ids = ids_of(21, 3, chance=0.1) if documents else None
    expected = learnt(spec_of(21, n_kv_heads, selection_backend="masked"), ids, torch.float64)
    found = learnt(spec_of(21, n_kv_heads, selection_backend="triton"), ids, torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert error(found[name], value) < 1e-4, name


def test_the_captured_selection_is_the_masked_ones(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sets: the union over KV heads."""
    monkeypatch.setattr(streamed, "SLAB_NUMBERS", 4 * 10 * 5)
    found = []
    for how in ("masked", "triton"):
        context = AttentionContext(torch.arange(25), capture={})
        with torch.no_grad():
            layer_of(spec_of(25, selection_backend=how)).eval()(x_of(25, 1), context)
        assert context.capture is not None
        found.append([{s for s in row if s >= 0} for row in context.capture[0].selected_BTK[0].tolist()])
    assert found[0] == found[1]


@pytest.mark.parametrize("check", others_slow([check_documents_are_separate, check_capture], 0, 1))
def test_contract(interpreted: None, check: Any) -> None:
    check(spec_of(10, selection_backend="triton"))


def test_no_tensor_of_l_by_l_elements(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, with documents, and as the recall of a selection is captured."""
    length = 64
    monkeypatch.setattr(streamed, "SLAB_NUMBERS", length * 16)
    monkeypatch.setattr(base, "RECALL_PAIRS", length * 16)
    ids = (torch.arange(length) // 40)[None]

    def use(how: str) -> None:
        spec = spec_of(length, 1, selection_backend=how, compression_block=8, compression_stride=8, selection_block=8)
        module = layer_of(spec)
        for documents in (None, ids):
            context = AttentionContext(torch.arange(length), "sparse", documents, {}, whole_mass=False)
            module.prepare(context)
            module(x_of(length, 1).requires_grad_(), context).out_BTD.sum().backward()

    with Watch(length**2):
        use("triton")
        with pytest.raises(AssertionError, match="gives"):
            use("masked")


def test_deterministic_gradients_repeat_their_bits(interpreted: None) -> None:
    spec = spec_of(13, selection_backend="triton")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (learnt(spec, None, torch.float32) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_auto_takes_lists_where_they_pay_and_run() -> None:
    def chosen(length: int, n_kv_heads: int | None) -> str | None:
        model = {"n_heads": 8, "n_kv_heads": n_kv_heads}
        attention = {"kind": "nsa"}
        return backend(
            validate({"length": length, "attention": attention, "model": model, "train": {"batch_size": 1}}), GPU
        )

    assert [chosen(length, 1) for length in (1023, 1024)] == ["masked", "triton"]
    assert [chosen(length, None) for length in (8191, 8192)] == ["masked", "triton"]


def test_lists_that_cannot_be_are_refused() -> None:
    attention = {"kind": "nsa", "selection_backend": "triton"}
    with pytest.raises(SpecError, match=r"attention.selection_backend = triton cannot run: a head's width .* is 512"):
        outline(validate({"attention": attention, "model": {"head_width": 512}}), 31)


def test_the_memory_estimate_follows_the_backend() -> None:
    def kept(how: str, length: int) -> float:
        spec = validate(
            {
                "length": length,
                "attention": {"kind": "nsa", "selection_backend": how},
                "train": {"batch_size": 1},
                "model": {"n_kv_heads": 2},
            }
        )
        return outline(spec, 31).layers()[0].attention.kept_per_pair(2) * length

    assert kept("masked", 32_768) == 2 * kept("masked", 16_384)
    assert kept("triton", 32_768) == kept("triton", 16_384) == 7 * (1024 * 2 + 512 / 4)
