"""Kernels run in Triton's interpreter here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import quicken

quicken()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not written shows: what torch.empty gives is NaN, or an index beyond all."""

    def poison(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else 1 << 29)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    made = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(made))
