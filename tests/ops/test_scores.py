"""The fused scores of evaluation against plain PyTorch, in fp64 where it counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsabench import ops
from dsabench.engine.evaluation import token_scores

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)


@pytest.mark.parametrize("vocabulary", [2, 7, 300, 4096, 5000, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_correctness_of_every_row(vocabulary: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    z_NV = (4 * torch.randn(9, vocabulary, generator=generator)).to(dtype)
    targets_N = torch.randint(vocabulary, (9,), generator=generator)
    targets_N[:4] = z_NV.argmax(-1)[:4]
    targets_N[4] = vocabulary - 1
    with ops.interpreted():
        assert ops.fused(z_NV)
        loss_N, correct_N = token_scores(z_NV, targets_N)
    expected_N = F.cross_entropy(z_NV.double(), targets_N, reduction="none")
    assert torch.allclose(loss_N.double(), expected_N, rtol=1e-5, atol=1e-5)
    assert torch.equal(correct_N, z_NV.argmax(-1) == targets_N)


def test_of_equal_logits_the_first_is_the_answer() -> None:
    z_NV = torch.zeros(3, 5000)
    z_NV[:, [17, 4500, 4999]] = 1.0
    with ops.interpreted():
        _, correct_N = token_scores(z_NV, torch.tensor([17, 4500, 4999]))
    assert correct_N.tolist() == [True, False, False]


def test_a_logit_that_is_no_number_makes_the_loss_none() -> None:
    z_NV = torch.zeros(2, 300)
    z_NV[1, 7] = float("nan")
    with ops.interpreted():
        loss_N, _ = token_scores(z_NV, torch.tensor([1, 1]))
    assert torch.isfinite(loss_N).tolist() == [True, False]
