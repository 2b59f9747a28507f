"""Cases of a parametrised test of which the plain run takes some, and a nightly run (`pytest -m slow`) the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def others_slow(cases: Iterable[Any], *plain: int) -> list[Any]:
    """`cases`, of which all but those at the places `plain` have the mark `slow`."""
    found = []
    for place, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=[] if place in plain else pytest.mark.slow))
    assert plain and max(plain) < len(found)
    return found
