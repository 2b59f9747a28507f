"""The worked plugin of Gated DeltaNet: the contract, and its chunks against the recurrence, in one document or many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsabench.attention.registry import variant
from dsabench.spec.config import load_sweep
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import CHECKS

FOLDER = Path(__file__).parents[2] / "configs" / "gated_delta"


def spec_of(n_kv_heads: int | None, **attention: Any) -> RunSpec:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": n_kv_heads, "d_ff": 16}
    plugins = [str(FOLDER / "gated_delta.py")]
    return validate({"plugins": plugins, "attention": attention, "length": 20, "model": model})


def recurrence(q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, ids: Tensor) -> Tensor:
    """The rule as it is written in the paper, a token at a time."""
    state, outs = torch.zeros(*q.shape[::2], q.shape[-1], v.shape[-1]).to(q), []
    for t in range(q.shape[1]):
        alpha = log_alpha[:, t].exp() * (ids[:, t] == ids[:, max(t - 1, 0)])[:, None]
        state = alpha[..., None, None] * state
        read = torch.einsum("bhd,bhde->bhe", k[:, t], state)
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], beta[:, t, :, None] * (v[:, t] - read))
        outs.append(torch.einsum("bhd,bhde->bhe", q[:, t], state))
    return torch.stack(outs, 1)


@pytest.mark.parametrize("n_kv_heads", [None, 2, 1], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[RunSpec], None], n_kv_heads: int | None) -> None:
    check(spec_of(n_kv_heads, kind="gated_delta", chunk=8))


def test_contract_of_a_stack_with_it() -> None:
    for check in CHECKS:
        check(spec_of(None, layers=["gated_delta", "dsa"], top_k=5, indexer={"n_heads": 2, "head_dim": 8}))


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_are_the_recurrence(chunk: int, packed: bool) -> None:
    spec_of(None, kind="gated_delta")
    chunked = vars(sys.modules[variant("gated_delta").__module__])["chunked"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 23, 3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    log_alpha = -torch.rand(2, 23, 3, generator=generator, dtype=torch.float64)
    beta = torch.rand(2, 23, 3, generator=generator, dtype=torch.float64)
    ids = torch.zeros(2, 23, dtype=torch.int32)
    if packed:
        ids = torch.tensor([[0] * 3 + [1] * 9 + [2] * 11, [0] * 8 + [1] * 15], dtype=torch.int32)
    given = [z.requires_grad_() for z in (q, k, v, log_alpha, beta)]
    expected = recurrence(*given, ids)
    found = chunked(*given, ids if packed else None, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), given) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_its_sweep_has_a_stack_of_it() -> None:
    specs = load_sweep(str(FOLDER / "sweep.yaml")).runs()
    assert [spec.attention.kinds for spec in specs[:9:3]] == [("dense",), ("gated_delta",), ("gated_delta", "dense")]
