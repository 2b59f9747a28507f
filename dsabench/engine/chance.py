"""The chance of a selection: the mass and targets that random keys would hold, one formula, in numpy.

Legend: T query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def selection_chance_T(n_selected_T: NDArray[Any]) -> NDArray[np.float64]:
    """n[t] / (t + 1): the share of anything in the past (attention mass, a set of keys) that a random causal set of
    n[t] keys holds on average. Query t has t + 1 keys to choose from."""
    chance_T: NDArray[np.float64] = n_selected_T / np.arange(1, len(n_selected_T) + 1)
    return chance_T
