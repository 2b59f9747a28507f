"""What tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsabench.figures.style import new_figure
from dsabench.selection import maps


@pytest.fixture
def blank_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of selections are empty pictures: drawing one takes seconds, and tests/selection looks at them."""
    save_png = maps.save_png
    monkeypatch.setattr(maps, "draw", lambda inspection: new_figure(1, 1))
    monkeypatch.setattr(maps, "save_png", lambda figure, path: save_png(new_figure(1, 1), Path(path)))
