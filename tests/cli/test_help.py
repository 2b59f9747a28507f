"""`--help`: summaries that are whole, options that do something, and the page of the guide that says more."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import pytest
from shell import Shell
from typer.models import ArgumentInfo, OptionInfo

import dsabench
from dsabench.cli import app
from dsabench.cli.command_help import MOST_COLUMNS, OPTION_GROUPS
from dsabench.guide.topics import pages


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


def lines_of() -> Iterator[tuple[str, ...]]:
    """The words of every command line that has a help of its own."""
    yield ()
    yield from ((command.name or "",) for command in app.app.registered_commands)
    for group in app.app.registered_groups:
        yield (group.name,)
        yield from ((group.name, command.name or "") for command in group.typer_instance.registered_commands)


@pytest.mark.parametrize("words", [(), ("runs",)])
def test_help_lists_every_command_with_a_whole_summary(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = shell(*words, "--help")
    assert code == 0
    rows = re.findall(r"^  ([a-z][a-z-]*)  +(\S.*)$", out, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(line[-1] for line in lines_of() if line and line[:-1] == words)
    assert words or "\nCommands:\n" not in out, "a command without a group of commands"
    for name, summary in rows:
        assert summary[0].isupper() and summary.endswith(".") and "..." not in summary, name


@pytest.mark.parametrize("words", list(lines_of()), ids=" ".join)
def test_help_fits_eighty_columns_and_names_its_page_of_the_guide(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = shell(*words, "--help")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert not [line for line in lines if len(line) > 80]
    (pointer,) = re.findall(r"^Guide: dsabench guide ?(.*)$", out, re.MULTILINE)
    assert lines[-1].startswith("Guide: ")
    assert pointer in pages() if words else pointer == ""


@pytest.mark.parametrize("words", [line for line in lines_of() if line and line != ("runs",)], ids=" ".join)
def test_help_of_a_command_has_every_option_with_a_sentence(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """As many options as its function has, each with help that is a sentence."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = shell(*words, "--help")[1].partition("\nExamples:\n")[0]
    _, options = re.split(r"^\w[\w ]+:$", shown, maxsplit=1, flags=re.MULTILINE)
    group = app.app if len(words) == 1 else app.app.registered_groups[0].typer_instance
    (function,) = [one.callback for one in group.registered_commands if one.name == words[-1]]
    hints = get_type_hints(function, include_extras=True).values()
    declared = [part for hint in hints for part in get_args(hint) if isinstance(part, OptionInfo)]
    shown = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", options, re.MULTILINE)
    assert len(shown) == len(declared) + 1, "and --help"
    for option in declared:
        text = (option.help or "").rstrip()
        assert text[:1] and text[-1] == ".", option.default
        assert "".join(text.split()) in "".join(options.split()), option.default  # lines break at hyphens, too


def declared() -> Iterator[tuple[str, str, Any, ArgumentInfo | OptionInfo]]:
    """(command, parameter, type, declaration) of every argument and option."""
    for command, function in commands():
        for name, hint in get_type_hints(function, include_extras=True).items():
            type_, *rest = get_args(hint) or (hint,)
            yield from ((command, name, type_, one) for one in rest if isinstance(one, ArgumentInfo | OptionInfo))


def test_what_takes_a_value_says_what_it_is() -> None:
    """`RUN`, `N ...`, `fail|accumulate`; never a type of Python, nor brackets, which Typer's versions treat apart."""
    found = [(command, name, one.metavar) for command, name, type_, one in declared() if type_ is not bool]
    assert len(found) > 70
    wrong = [one for one in found if not re.fullmatch(r"[A-Z_=]+( \.\.\.)?|[\w:]+(\|[\w:]+)*", one[2] or "")]
    assert not wrong


def test_every_option_is_in_a_group() -> None:
    options = [(command, name, one) for command, name, _, one in declared() if isinstance(one, OptionInfo)]
    assert {one.rich_help_panel for _, _, one in options} <= {*OPTION_GROUPS, None}
    assert {name for _, name, one in options if one.rich_help_panel is None} <= {"no_plugins", "yes"}


@pytest.mark.parametrize("words", list(lines_of()), ids=" ".join)
@pytest.mark.parametrize("columns", [80, 200])
def test_help_shows_examples_that_are_commands(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], columns: int
) -> None:
    """Two to four of them, each with a line that says what for. test_documentation.py runs them: the page of commands
    holds the same text."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = shell(*words, "--help")[1]
    assert max(map(len, out.splitlines())) <= min(columns, MOST_COLUMNS)
    assert not re.search(r"<\w+>|\[\[|\\\[|list\[|None\b", out), "a type of Python, or brackets in brackets"
    lines = (
        textwrap.dedent(out.partition("\nExamples:\n")[2].partition("\nGuide: ")[0]).replace("\\\n", "").splitlines()
    )
    purposes, examples = lines[::2], lines[1::2]
    assert 2 <= len(examples) <= 4
    assert all(purpose.startswith("# ") for purpose in purposes)
    for example in examples:
        if not words or words == ("runs",):
            assert shlex.split(example)[:2] == ["dsabench", *(words or shlex.split(example)[1:2])]
        else:
            assert shlex.split(example)[: len(words) + 1] == ["dsabench", *words] or words == ("runs", "list"), example
        assert f"\n{example}\n" in pages()["commands"].text.replace("\\\n", ""), example


def test_the_widest_help_uses_a_wide_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(len, shell("sweep", "--help")[1].splitlines())) > 100


def test_the_package_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsabench", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"dsabench {dsabench.__version__}\n"
