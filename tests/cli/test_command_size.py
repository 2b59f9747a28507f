"""The size of the commands: parse, call, print, and no more."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dsabench.cli import commands

FILES = sorted(Path(commands.__file__).parent.glob("*.py"))
MOST = 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_function_of_a_command_is_longer_than_a_screen(file: Path) -> None:
    """Signature and docstring included."""
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    long = {one.name: lines for one in functions if (lines := (one.end_lineno or 0) - one.lineno + 1) > MOST}
    assert not long


def test_each_option_of_several_commands_is_declared_once() -> None:
    """An alias such as StoreOption has one declaration; two that differ (`sweep --margin`, `compare --margin`) may be
    called alike in two files, and then say different things."""
    declared: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                text = ast.unparse(node.value)
                if text.startswith("Annotated["):
                    declared.setdefault(text, []).append(f"{file.stem}.{node.targets[0].id}")
    assert len(declared) > 50
    assert not {text: names for text, names in declared.items() if len(names) > 1}
