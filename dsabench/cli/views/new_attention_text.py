"""The way from a new attention's files to a verdict."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from dsabench.cli.safe_text import printable


def next_steps(plugin: Path, test: Path, config: Path) -> list[tuple[str, str]]:
    """(what for, command line) in their order."""
    kind = plugin.stem
    written = shlex.quote(str(config))
    pytest = (
        []
        if importlib.util.find_spec("pytest")
        else [("The test needs pytest, which is missing", "pip install pytest")]
    )
    return [
        *pytest,
        ("The whole contract, in seconds (it needs pytest)", f"pytest {shlex.quote(str(test))}"),
        ("Look-ahead, at the size that will train", f"dsabench audit --config {written} --attention {kind}"),
        ("Against dense attention: 12 runs, minutes on two CPU cores", f"dsabench sweep --config {written}"),
        ("What it means", "dsabench compare"),
    ]


def print_next(plugin: Path, test: Path, config: Path) -> None:
    """The files, and what to do with them."""
    print(printable(f"Written: {plugin}, {test}, {config}"))
    print(printable(f"Replace the formula in {plugin}. Its parts: dsabench guide attention. Then:"))
    for purpose, command in next_steps(plugin, test, config):
        print(printable(f"  # {purpose}"))
        print(printable(f"  {command}"))
