"""Batches on their way to the device, where page-locked memory runs out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsabench.engine.staged_batches import pinned


def refusing(words: str) -> object:
    def pin_memory(self: Tensor) -> Tensor:
        raise RuntimeError(f"CUDA error: {words}\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")

    return pin_memory


@pytest.mark.parametrize("words", ["invalid argument", "out of memory"])
def test_without_page_locked_memory_the_tensor_is_copied_as_it_is(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", refusing(words))
    tensor = torch.arange(5)
    with pytest.warns(UserWarning, match="no more page-locked memory"):
        assert pinned(tensor) is tensor


def test_a_device_that_is_lost_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", refusing("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pinned(torch.arange(5))
