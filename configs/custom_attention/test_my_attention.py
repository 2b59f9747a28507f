"""The contract on my_attention.py: `pytest test_my_attention.py` in this folder, or from anywhere by its path."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dsabench.spec.run import RunSpec, validate
from dsabench.testing import CHECKS

PLUGIN = Path(__file__).with_name("my_attention.py")


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[RunSpec], None], n_kv_heads: int) -> None:
    """Small sizes: every check tries every position."""
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": n_kv_heads, "d_ff": 32}
    attention = {"kind": "my_attention", "half_life": 3.0}
    check(validate({"plugins": [str(PLUGIN)], "attention": attention, "length": 20, "model": model}))
