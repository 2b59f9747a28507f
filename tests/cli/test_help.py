"""What `--help` promises: summaries that are whole, and options that do something."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import pytest
from shell import Shell
from typer.models import OptionInfo

from dsabench.cli import app


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    groups = [app.app, *(group.typer_instance for group in app.app.registered_groups)]
    for group in groups:
        for command in group.registered_commands:
            assert command.callback is not None
            yield command.name or "", command.callback


def test_every_option_does_something() -> None:
    found = dict(commands())
    assert len(found) > 10
    for name, function in found.items():
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(node, ast.FunctionDef)
        read = {use.id for statement in node.body for use in ast.walk(statement) if isinstance(use, ast.Name)}
        hints = get_type_hints(function, include_extras=True)
        acts = {
            option for option, hint in hints.items() if any(getattr(part, "callback", None) for part in get_args(hint))
        }
        assert {argument.arg for argument in node.args.args} <= read | acts, name


def test_every_typer_gives_an_option_the_same_name() -> None:
    """Typer 0.27 names an option after its metavar where the two differ in case only: `--run RUN` became `--RUN`."""
    hints = (hint for _, function in commands() for hint in get_type_hints(function, include_extras=True).items())
    options = [(name, part) for name, hint in hints for part in get_args(hint) if isinstance(part, OptionInfo)]
    assert len(options) > 100
    renamed = [
        name
        for name, part in options
        if part.default is ...  # where an Annotated option has its first name
        and (part.metavar or "").replace("_", "-").lower() == name.replace("_", "-").lower()
    ]
    assert not renamed, "say the name: typer.Option(NAME, ...)"


@pytest.mark.parametrize("words", [(), ("runs",)])
def test_help_cuts_no_command_short(shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = shell(*words, "--help")
    assert code == 0
    assert "..." not in out.partition("Commands:")[2]


def test_help_fits_eighty_columns(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group, within in ((app.app, ()), *((one.typer_instance, (one.name,)) for one in app.app.registered_groups)):
        for command in group.registered_commands:
            code, out, _ = shell(*within, command.name, "--help")
            assert code == 0 and "--" in out
            assert not [line for line in out.splitlines() if len(line) > 80], command.name
