"""Help of the commands: arguments as a user types them, options in named groups, examples, a page of the guide.

A group is what an option's declaration says in `rich_help_panel`; the text is plain, so that a terminal of 80 columns,
one of 200 and a pipe all get something to read. `MOST_COLUMNS` is the widest line.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

MOST_COLUMNS = 120

EXPERIMENT = "Experiment"
LAYER = "Layer"
MEASUREMENT = "Measurement"
STORED = "Stored runs"
WINDOW = "Window"
COMPARISON = "Comparison"
MACHINE = "Machine"
OUTPUT = "Output"
OTHER = "Other options"
OPTION_GROUPS = (EXPERIMENT, LAYER, MEASUREMENT, STORED, WINDOW, COMPARISON, MACHINE, OUTPUT, OTHER)
"""The groups of options in the order of the help. What names none is among the last."""

TRAINING = "Train"
ANSWERS = "Read the answer"
CHECKS = "Check and measure"
LOOK_UP = "Look up and begin"
_COMMAND_GROUPS = (TRAINING, ANSWERS, CHECKS, LOOK_UP)
"""The groups of commands, in the order of the help."""


_WIDEST_NAME = 26
"""Characters of the longest name beside which its text stands; that of a longer one begins below it."""


def epilog(topic: str, *examples: tuple[str, str], above: str = "") -> str:
    r"""What stands below the options: `above`, the examples (what for, command line), the topic of the guide.

    A command line that needs two lines has a backslash at the end of the first. Everything is shown as it is written.
    """
    lines = [line for purpose, command in examples for line in (f"# {purpose}", *command.splitlines())]
    blocks = [above] if above else []
    if lines:
        blocks.append("\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines))
    return "\n\n".join([*blocks, f"Guide: dsabench guide {topic}".rstrip()])


def argument_name(metavar: str, required: bool, several: bool) -> str:
    """An argument as a usage line names it: `RUN`, `[RUN]`, `[RUN]...`."""
    return (metavar if required else f"[{metavar}]") + ("..." if several else "")


class HelpfulCommand(TyperCommand):
    """A command with help of this form, the same under every version of Typer."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS]` and the arguments."""
        return ["[OPTIONS]", *(_usage_name(argument) for argument in self._shown(ctx, "argument"))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options in their groups."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *OPTION_GROUPS)}
        for argument in self._shown(ctx, "argument"):
            groups["Arguments"].append((_usage_name(argument), _record(argument, ctx)[1]))
        for option in self._shown(ctx, "option"):
            groups[getattr(option, "rich_help_panel", None) or OTHER].append(_record(option, ctx))
        _write(groups, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples and the guide's topic."""
        _write_epilog(self.epilog, formatter)

    def _shown(self, ctx: Any, kind: str) -> list[Any]:
        shown = [one for one in self.get_params(ctx) if not getattr(one, "hidden", False)]
        return [one for one in shown if one.param_type_name == kind]


class HelpfulGroup(TyperGroup):
    """The list of commands in groups: what a command's registration says in `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A section for each group; one called Commands for those that name none."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*_COMMAND_GROUPS, "Commands")}
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        for name in names:
            command: Any = self.get_command(ctx, name)
            group = getattr(command, "rich_help_panel", None)
            groups[group if isinstance(group, str) else "Commands"].append((name, command.get_short_help_str(limit)))
        _write(groups, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples and the guide's topic."""
        _write_epilog(self.epilog, formatter)


def _write_epilog(text: str | None, formatter: Any) -> None:
    """As wide as everything else, and not indented: its parts have headings of their own."""
    if text:
        formatter.write_paragraph()
        formatter.write_text(text)


def _write(groups: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    """A section for each group that is not empty, its second column where that of all others is."""
    lengths = [len(name) for rows in groups.values() for name, _ in rows]
    width = max((length for length in lengths if length <= _WIDEST_NAME), default=0)
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", text) for name, text in rows])


def _record(parameter: Any, ctx: Any) -> tuple[str, str]:
    """Name and text; Typer before 0.24 escapes brackets for rich, which shows nothing here."""
    name, text = parameter.get_help_record(ctx)
    return name, text.replace("\\[", "[")


def _usage_name(argument: Any) -> str:
    metavar = str(argument.metavar or argument.name.upper())
    return argument_name(metavar, bool(argument.required), argument.nargs == -1)
