"""The loss of a CPU, slab by slab, agrees with PyTorch's of whole logits in fp64, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench import ops
from dsabench.ops import cross_entropy


def reference(x_ND: Tensor, e_VD: Tensor, targets_N: Tensor, scored_N: Tensor | None) -> Tensor:
    nll_N = F.cross_entropy(x_ND @ e_VD.T, targets_N, reduction="none")
    return nll_N.mean() if scored_N is None else nll_N[scored_N].sum() / max(1, int(scored_N.sum()))


@settings(deadline=None, max_examples=80)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 20),
    vocabulary=st.integers(1, 70),
    slab=st.sampled_from([1, 100, 2**22]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    share=st.sampled_from([None, 0.0, 0.3, 1.0]),
    large=st.sampled_from([1.0, 300.0]),
    factor=st.sampled_from([1.0, -2.5]),
    apart=st.booleans(),
)
def test_it_is_the_loss_of_whole_logits(
    tokens: int,
    width: int,
    vocabulary: int,
    slab: int,
    dtype: torch.dtype,
    share: float | None,
    large: float,
    factor: float,
    apart: bool,
) -> None:
    generator = torch.Generator().manual_seed(tokens + 100 * width + vocabulary)
    targets_N = torch.randint(vocabulary, (tokens,), generator=generator)
    scored_N = None if share is None else torch.rand(tokens, generator=generator) < share
    given_ = [
        (size * torch.randn(n, width, generator=generator)).to(dtype)
        for size, n in ((large, tokens), (1.0, vocabulary))
    ]
    if apart:  # neighbours of a row are not neighbours in memory
        given_ = [x.T.contiguous().T for x in given_]
    ours, exact = ([x.to(kind).detach().requires_grad_() for x in given_] for kind in (dtype, torch.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CPU_SLAB", slab)
        loss = ops.linear_cross_entropy(*ours, targets_N, scored_N)
    expected = reference(*exact, targets_N, scored_N)
    assert loss.dtype == torch.float32
    # In bf16 the logits themselves are rounded, to 2^-9 of their size.
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    largest = float((exact[0] @ exact[1].T).detach().abs().max())
    assert abs(float(loss.detach()) - float(expected.detach())) <= rounding * max(1.0, largest)
    if large > 1 and dtype == torch.bfloat16:
        return  # such a rounding of a logit is another distribution
    (factor * loss).backward()
    (factor * expected).backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        error = float((mine.grad.double() - theirs.grad).abs().max())
        assert error <= 20 * rounding * max(1.0, largest) * float(theirs.grad.abs().max().clamp(min=1e-3))


def test_fp64_is_the_reference() -> None:
    x, e, targets = (
        torch.randn(3, 2, dtype=torch.float64),
        torch.randn(5, 2, dtype=torch.float64),
        torch.tensor([4, 0, 1]),
    )
    assert torch.equal(ops.linear_cross_entropy(x, e, targets), F.cross_entropy(x @ e.T, targets))


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = cross_entropy.plain_rows
    monkeypatch.setattr(cross_entropy, "plain_rows", lambda *given_: asked.append(given_[-1]) or plain(*given_))
    x, e, targets = torch.randn(3, 2), torch.randn(5, 2), torch.tensor([4, 0, 1])
    loss = ops.linear_cross_entropy(x, e, targets)
    assert float(loss) == pytest.approx(float(F.cross_entropy(x @ e.T, targets)), rel=1e-6)
    ops.linear_cross_entropy(x.requires_grad_(), e, targets)
    assert asked == [False, True]


def test_a_logit_that_is_not_a_number_is_not_hidden() -> None:
    x = torch.randn(3, 2)
    x[1, 0] = torch.nan
    assert ops.linear_cross_entropy(x, torch.randn(5, 2), torch.tensor([4, 0, 1])).isnan()
