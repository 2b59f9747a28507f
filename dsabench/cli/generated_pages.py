"""The pages of the guide that are made from code. `python -m dsabench.cli.generated_pages` writes them anew."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from dsabench.cli.app import app
from dsabench.cli.command_help import OPTION_GROUPS, OTHER, argument_name
from dsabench.guide import fields_page, topics
from dsabench.metrics.glossary import page as metrics_page

_HEAD = """\
# Commands

Every command with its arguments, options and their defaults.

Results go to stdout, progress and messages to stderr. `--help` of a command
prints the same in the terminal. A list option takes its values in any of these
forms: `--lengths 64 128`, `--lengths 64,128`, `--lengths 64 --lengths 128`.
"""


_NEEDS_EXTRAS = ("dsabench export",)
"""Commands whose examples run only where more packages are installed: in a block that is not executed (sh)."""


def commands_page() -> str:
    """The page `commands.md`, made from the declarations of the commands."""
    root = app.registered_callback
    assert root is not None and root.callback is not None
    lines = [_HEAD, *_items(root.callback), *_epilog(str(app.info.epilog))]
    for name, function, epilog in _commands(app, "dsabench"):
        lines += [f"## {name}\n", f"    {' '.join([name, *_arguments(function), '[OPTIONS]'])}\n"]
        lines += [_wrapped(paragraph) + "\n" for paragraph in (inspect.getdoc(function) or "").split("\n\n")]
        lines += [*_items(function), *_epilog(epilog, "sh" if name in _NEEDS_EXTRAS else "bash")]
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "fields": fields_page.fields_page,
    "metrics": metrics_page,
    "commands": commands_page,
}
"""What makes each page, by its topic."""


def write_pages() -> list[Path]:
    """Write every page into the guide's folder, and return their paths."""
    written = []
    for topic, make in PAGES.items():
        path = Path(topics.__file__).with_name(f"{topic}.md")
        path.write_text(make(), encoding="utf-8")
        written.append(path)
    return written


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """(name with `dsabench` before it, function, epilog) of every command, those of groups last."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name}", command.callback, str(command.epilog or "")
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix} {inner.name}")


def _declared(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, ArgumentInfo | OptionInfo]]:
    """(parameter, its type, how it is declared) of each argument and option, in their order."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        type_, *rest = get_args(hints[parameter.name])
        yield from ((parameter, type_, one) for one in rest if isinstance(one, ArgumentInfo | OptionInfo))


def _arguments(function: Callable[..., Any]) -> list[str]:
    return [
        _argument(parameter, type_, one)
        for parameter, type_, one in _declared(function)
        if isinstance(one, ArgumentInfo)
    ]


def _argument(parameter: inspect.Parameter, type_: Any, declared: ArgumentInfo) -> str:
    """As a usage line names it: `RUN`, `[RUN]`, `[RUN]...`."""
    several = list in {type_, *(getattr(part, "__origin__", None) for part in get_args(type_))}
    required = parameter.default is inspect.Parameter.empty
    return argument_name(declared.metavar or parameter.name.upper(), required, several)


def _items(function: Callable[..., Any]) -> Iterator[str]:
    """An item of a list for each argument, then for each option, group by group."""
    groups = _grouped(function)
    for title, found in groups.items():
        if title and len(groups) > 1:
            yield f"{title}:\n"
        yield from _of_group(found)
        yield ""


def _grouped(function: Callable[..., Any]) -> dict[str, list[tuple[inspect.Parameter, Any, ArgumentInfo | OptionInfo]]]:
    """Arguments under "", then the options of each group, those of none under the last heading."""
    found: dict[str, list[tuple[inspect.Parameter, Any, ArgumentInfo | OptionInfo]]] = {"": []}
    found |= {group: [] for group in OPTION_GROUPS}
    for item in _declared(function):
        found["" if isinstance(item[2], ArgumentInfo) else item[2].rich_help_panel or OTHER].append(item)
    return {title: items for title, items in found.items() if items}


def _of_group(found: Iterable[tuple[inspect.Parameter, Any, ArgumentInfo | OptionInfo]]) -> Iterator[str]:
    for parameter, type_, one in found:
        if isinstance(one, ArgumentInfo):
            name = _argument(parameter, type_, one)
        else:
            first = one.default if isinstance(one.default, str) else f"--{parameter.name.replace('_', '-')}"
            name = ", ".join([first, *(one.param_decls or [])])  # Annotated: the first name is in `default`
            choices = [str(choice.value) for choice in _enum(type_)]
            value = one.metavar or "|".join(choices)
            name += f" {value}" if value and type_ is not bool else ""
        text = [(one.help or "").removesuffix(".")]
        if one.envvar:
            text.append(f"variable `{one.envvar}`")
        default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
        if default not in (None, False, inspect.Parameter.empty):
            text.append(f"default `{default}`")
        yield _wrapped(f"- `{name}`: {'; '.join(text)}.", "  ")


def _enum(type_: Any) -> list[Enum]:
    """The members of the Enum that a parameter takes."""
    kinds = [one for one in (type_, *get_args(type_)) if isinstance(one, type) and issubclass(one, Enum)]
    return [member for kind in kinds for member in kind]


def _epilog(epilog: str, shell: str = "bash") -> Iterator[str]:
    """What stands below the options: lists and examples, as code; and the page of the guide, as a link."""
    above, _, topic = epilog.replace("\b\n", "").rpartition("Guide: dsabench guide")
    for block in filter(None, above.strip().split("\n\n")):
        title, *lines = block.splitlines()
        language = shell if title.startswith("Examples") else "text"
        yield "\n".join([f"{title}\n", f"```{language}", *(line.removeprefix("  ") for line in lines), "```", ""])
    if topic := topic.strip():
        yield f"Guide: [{topic}]({topic}.md)\n"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        fields_page.WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    for page in write_pages():
        print(f"Written: {page}")
