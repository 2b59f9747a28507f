"""The guide's table of other people's references is what the tests declare."""

from __future__ import annotations

import ast

import numpy as np
import parity
import pytest
from parity import PAGE, TESTS, Parity, page, rows


def test_the_guide_has_the_table_of_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/support/parity.py writes it anew"
    assert len(rows()) >= 20


def test_every_row_is_held_by_a_check() -> None:
    """A declared row whose `check` no function of its module calls would be a claim without a test."""
    for path in {path for _, path in rows()}:
        tree = ast.parse((TESTS.parent / path).read_text(encoding="utf-8"))
        declared = {
            node.targets[0].id
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
            and node.value.func.id == "Parity"
        }
        checked = {
            node.func.value.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "check"
            and isinstance(node.func.value, ast.Name)
        }
        assert declared <= checked, path


def test_a_check_sees_what_differs() -> None:
    row = Parity("a", "b", 1e-4)
    row.check([1.0, 2.0], [1.0, 2.00009])
    for theirs in ([1.0, 2.0002], [1.0, np.nan]):
        with pytest.raises(AssertionError):
            row.check([1.0, 2.0], theirs)
    with pytest.raises(AssertionError):
        Parity("a", "b", 0).check([1], [2])
    with pytest.raises(AssertionError, match="shapes"):
        row.check([1.0], [[1.0]])
    share = Parity("a", "b", 1e-3, "largest difference over largest value")
    share.check([100.0], [100.05])
    with pytest.raises(AssertionError):
        share.check([1.0], [1.05])
    assert parity.rows, "the module is the one of tests/support"
