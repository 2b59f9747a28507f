"""CSA, HCA and MSA by the sparse kernels, through Triton's interpreter, against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import others_slow
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from watch import Watch

from dsabench.attention import with_backends
from dsabench.attention.base import AttentionContext, Selection
from dsabench.attention.csa import streamed
from dsabench.attention.msa import block_lists
from dsabench.attention.msa import streamed as msa_streamed
from dsabench.attention.registry import variant
from dsabench.spec.run import validate

INDEXER = {"n_heads": 2, "head_dim": 8}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "csa": {"kind": "csa", "top_k": 3, "compress_ratio": 3, "sliding_window": 4, "indexer": INDEXER},
    "hca": {"kind": "hca", "compress_ratio": 5, "sliding_window": 4},
    "msa": {"kind": "msa", "block_size": 4, "top_k_blocks": 3, "index_branch": {"head_dim": 8}},
    "csa without an entry": {"kind": "csa", "compress_ratio": 40, "sliding_window": 4, "indexer": INDEXER},
}
CASES = [
    ("csa", False, "sparse", 1),
    ("csa", True, "sparse", 2),
    ("hca", False, "sparse", 1),
    ("msa", True, "sparse", 2),
    ("csa", True, "dense", 1),
    ("hca", True, "sparse", 4),
    ("msa", False, "sparse", 1),
    ("msa", True, "dense", 2),
    ("csa", False, "dense", 4),
    ("csa without an entry", False, "sparse", 1),
]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU; unions are for bf16 alone, and slow here."""
    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)
    monkeypatch.setattr(streamed, "queries_of", lambda *sizes: 0)


def results(
    attention: dict[str, Any], backend: str, length: int, packed: bool, stage: Any, groups: int
) -> dict[str, Tensor]:
    model = {"d_model": 16, "n_layers": 1, "n_heads": 4, "n_kv_heads": groups, "d_ff": 16}
    spec = validate({"length": length, "attention": {**attention, "backend": backend}, "model": model})
    module = variant(spec.attention.kind)(spec, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    x = torch.randn(2, length, 16, generator=generator).requires_grad_()
    ids = (torch.rand(2, length, generator=generator) < 0.15).long().cumsum(1) if packed else None
    context = AttentionContext(torch.arange(length), stage, ids)
    module.prepare(context)
    output = module(x, context)
    weight = torch.randn(output.out_BTD.shape, generator=generator)
    found = {"out": output.out_BTD.detach()}
    total = (output.out_BTD * weight).sum()
    if output.aux_loss is not None:
        found["loss"], total = output.aux_loss.detach(), total + 3 * output.aux_loss
    total.backward()
    captured: dict[int, Selection] = {}
    with torch.no_grad():
        module(x.detach(), AttentionContext(torch.arange(length), stage, ids, captured))
    if captured:
        found["captured"] = members(captured[0].selected_BTK, length)
    missing = torch.zeros(())
    return {**found, "x": g(x), **{name: g(p, missing) for name, p in module.named_parameters()}}


def g(x: Tensor, missing: Tensor | None = None) -> Tensor:
    assert x.grad is not None or missing is not None
    return x.grad if x.grad is not None else torch.zeros_like(x)


def members(selected: Tensor, length: int) -> Tensor:
    chosen = torch.zeros(*selected.shape[:2], length + 1)
    return chosen.scatter(-1, torch.where(selected < 0, length, selected).long(), 1.0)[..., :length]


@pytest.mark.parametrize(("name", "packed", "stage", "groups"), others_slow(CASES, 4))
def test_kernels_agree_with_the_reference(name: str, packed: bool, stage: Any, groups: int) -> None:
    expected = results(ATTENTIONS[name], "masked", 29, packed, stage, groups)
    found = results(ATTENTIONS[name], "triton", 29, packed, stage, groups)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # A floor: where every query sees one entry the loss is rounding alone.
        error = float((found[key] - value).abs().max() / (value.abs().max() + 1e-3))
        assert error < 2e-5, f"{key} differs by {error:.2g}"


def test_bits_repeat_where_algorithms_are_deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (results(ATTENTIONS["csa"], "triton", 17, False, "sparse", 1) for _ in range(2))
        plain = results(ATTENTIONS["csa"], "masked", 17, False, "sparse", 1)
    finally:
        torch.use_deterministic_algorithms(False)
    for key, value in plain.items():
        assert torch.equal(one[key], other[key]), key
        assert float((one[key] - value).abs().max() / (value.abs().max() + 1e-9)) < 2e-5, key


@pytest.mark.parametrize("name", ["csa", "hca", "msa"])
def test_no_tensor_has_l_x_l_elements(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of one window and one KV head, in the sparse stage; kernels are replaced by tensors of their shapes."""
    length = 256
    monkeypatch.setattr(block_lists, "SLAB_PAIRS", length * 16)
    small = {"csa": {"top_k": 4}, "hca": {"compress_ratio": 32}, "msa": {"top_k_blocks": 2}}[name]
    model = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16}
    attention = {**ATTENTIONS[name], **small, "backend": "triton"}
    spec = validate({"length": length, "attention": attention, "model": model})
    module = variant(name)(spec, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    kernel = streamed.kernels
    monkeypatch.setattr(kernel, "_attend", lambda q, *_: (q.clone(), q.new_zeros(q.shape[:3])))
    monkeypatch.setattr(kernel, "_attend_backward", lambda q, k, v, *_: (q.clone(), k.clone(), v.clone()))
    monkeypatch.setattr(msa_streamed, "sparse_attend", lambda q, *_, **__: (q.clone(), q.new_zeros(q.shape[:3])))
    for module_ in (streamed, msa_streamed):
        monkeypatch.setattr(
            module_, "sparse_kl", lambda q, k, lse, qi, ki, wi, *_, **__: qi.sum() + ki.sum() + wi.sum()
        )
    monkeypatch.setattr(
        streamed,
        "top_k",
        lambda q, _k, _w, k, _ids: (torch.zeros(*q.shape[:2], k, dtype=torch.int32), q.new_zeros(q.shape[:2])),
    )
    x = torch.randn(1, length, 16).requires_grad_()
    with Watch(length**2 // 2):
        context = AttentionContext(torch.arange(length))
        module.prepare(context)
        output = module(x, context)
        (output.out_BTD.sum() + (output.aux_loss if output.aux_loss is not None else 0)).backward()
