"""The random state of the process, which calls from a notebook leave as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators have the same state afterwards as before, whatever is drawn
    inside: whoever calls seeds them for numbers of their own. Runs draw from generators of theirs, keyed by seed."""
    python, cpu, seed = random.getstate(), torch.get_rng_state(), torch.initial_seed()
    numpy = np.random.get_state()  # noqa: NPY002 - the generator of whoever calls
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():  # by what was called; PyTorch would have seeded its generators so
            torch.cuda.manual_seed_all(seed)
