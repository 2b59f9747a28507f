"""`dsabench plot`: the figures of a store, ready to print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, OUTPUT, epilog
from dsabench.cli.list_options import ListCommand, texts
from dsabench.cli.options import (
    AllFlag,
    BaselineOption,
    JsonFlag,
    OutOption,
    QuietFlag,
    StoreOption,
    SweepOption,
    WhereOption,
    check_out,
)
from dsabench.errors import DsabenchError
from dsabench.figures.catalogue import FIGURES, FORMATS, FORMER_NAMES, file_name

if TYPE_CHECKING:
    from dsabench.figures.data import FigureData

_FIGURES = "\b\nFigures:\n" + "\n".join(f"  {name:11}{kind.what}" for name, kind in FIGURES.items())

FiguresArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Figures by name, as listed below; without any, all that the runs allow.",
        metavar="FIGURE",
        show_default=False,
        autocompletion=completion.figures,
    ),
]
FormatsOption = Annotated[
    list[str] | None,
    texts(
        "--formats",
        "png, svg, pdf; png without it.",
        metavar="FORMAT",
        rich_help_panel=OUTPUT,
        autocompletion=completion.figure_formats,
    ),
]

_EXAMPLES = (
    ("All figures that the newest sweep allows", "dsabench plot"),
    ("Two of them, for a paper", "dsabench plot positions forest --formats pdf svg"),
    ("Of all runs of the store, into another folder", "dsabench plot learning --all --out figures"),
)


class PlotError(DsabenchError):
    """No such figure or format, or nothing to draw."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "plot",
        cls=ListCommand,
        epilog=epilog("verdicts", *_EXAMPLES, above=_FIGURES),
        rich_help_panel=ANSWERS,
        short_help="Draw figures as PNG, SVG or PDF.",
    )(plot)


def plot(
    figures: FiguresArgument = None,
    sweep: SweepOption = None,
    everything: AllFlag = False,
    where: WhereOption = None,
    baseline: BaselineOption = "dense",
    formats: FormatsOption = None,
    store: StoreOption = Path("runs"),
    out: OutOption = Path("results"),
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Draw the figures of the newest sweep as PNG, SVG or PDF.

    The same runs give the same bytes. What cannot be drawn is left out, and why is said.
    """
    wanted = _chosen(
        figures or list(FIGURES), list(FIGURES), "figure", "; list figures before any option", FORMER_NAMES
    )
    forms = _chosen(formats or ["png"], list(FORMATS), "--formats", "; name figures before --formats")

    from dsabench.analysis.scope import look_at
    from dsabench.cli.console import notifier
    from dsabench.cli.views.json_document import print_json

    check_out(out)
    from dsabench.figures.catalogue import fitting
    from dsabench.figures.data import figure_data

    data = figure_data(look_at(store, sweep=sweep, everything=everything, where=where), baseline)
    notify = notifier(quiet)
    notify(f"figures of {data.scope.title}")
    for note in data.notes:
        notify(f"note: {note}")
    drawn, skipped = _draw(wanted if figures else fitting(data), data, out, forms, notify, said=not json)
    if not drawn:
        reasons = "; ".join(f"{one['name']}: {one['reason']}" for one in skipped)
        raise PlotError(f"nothing to draw of {data.scope.title}{f': {reasons}' if quiet else '; why is said above'}")
    if json:
        print_json({"scope": data.scope.title, "figures": drawn, "skipped": skipped, "notes": data.notes})


def _draw(
    names: Sequence[str],
    data: FigureData,
    out: Path,
    forms: Sequence[str],
    notify: Callable[[str], None],
    said: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Draw and save each figure; with `said` name its files on stdout.

    Returns:
        (name, files and notes of each figure; name of each that cannot be drawn, and the reason), for --json
    """
    from dsabench.cli.console import stdout_console
    from dsabench.figures.catalogue import draw
    from dsabench.figures.style import save

    drawn: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for name in names:
        figure = draw(name, data)
        if isinstance(figure, str):
            skipped.append({"name": name, "reason": figure})
            notify(f"{name}: {figure}")
            continue
        files = [
            str(save(page, out / file_name(name, number, form)))
            for number, page in enumerate(figure.pages, 1)
            for form in forms
        ]
        drawn.append({"name": name, "files": files, "notes": figure.notes})
        for note in figure.notes:
            notify(f"{name}: {note}")
        if said:
            stdout_console().print(f"Written: {', '.join(files)}")
    return drawn, skipped


def _chosen(
    words: list[str], known: list[str], what: str, hint: str, former: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """The words that are `known`, or were called so in an earlier version, each once; PlotError for another."""
    from dsabench.spec.messages import near_miss

    found = list(dict.fromkeys(former.get(part, part) for word in words for part in word.split(",") if part))
    for word in found:
        if word not in known:
            raise PlotError(f"{what} {word} is unknown{near_miss(word, known)}{hint}")
    return found
