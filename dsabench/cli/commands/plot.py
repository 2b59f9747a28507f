"""`dsabench plot`: the figures of a store, ready to print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsabench.cli.list_options import ListCommand, texts
from dsabench.cli.options import All, Baseline, Json, Out, Quiet, Store, Sweep, Where
from dsabench.errors import DsabenchError
from dsabench.figures.catalogue import FIGURES, FORMATS, file_name

_FIGURES = "\b\nFigures:\n" + "\n".join(f"  {name:11}{kind.what}" for name, kind in FIGURES.items())


class PlotError(DsabenchError):
    """No such figure or format, or nothing to draw."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("plot", cls=ListCommand, epilog=_FIGURES, short_help="Draw figures as PNG, SVG or PDF.")(plot)


def plot(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of figures, as below; all that fit without any.", metavar="FIGURE", show_default=False
        ),
    ] = None,
    sweep: Sweep = None,
    everything: All = False,
    where: Where = None,
    baseline: Baseline = "dense",
    formats: Annotated[list[str] | None, texts("--formats", "png, svg, pdf; png without it.", metavar="FORMAT")] = None,
    store: Store = Path("runs"),
    out: Out = Path("results"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw the figures of the newest sweep as PNG, SVG or PDF.

    The same runs give the same bytes. What cannot be drawn is left out, and why is said.
    """
    wanted = _chosen(figures or list(FIGURES), list(FIGURES), "figure", "; list figures before any option")
    forms = _chosen(formats or ["png"], list(FORMATS), "--formats", "; name figures before --formats")

    from dsabench.analysis.scope import look_at
    from dsabench.cli.progress import stderr_console
    from dsabench.cli.views.outcome import check_out, print_json, stdout_console

    check_out(out)
    from dsabench.figures.catalogue import draw, fitting
    from dsabench.figures.data import figure_data
    from dsabench.figures.style import save

    data = figure_data(look_at(store, sweep=sweep, everything=everything, where=where), baseline)
    document: dict[str, Any] = {"scope": data.scope.title, "figures": [], "skipped": [], "notes": data.notes}
    console, log = stdout_console(), stderr_console()
    if not quiet:
        log.print(f"figures of {data.scope.title}")
        for note in data.notes:
            log.print(f"note: {note}")
    for name in wanted if figures else fitting(data):
        drawn = draw(name, data)
        if isinstance(drawn, str):
            document["skipped"].append({"name": name, "reason": drawn})
            if not quiet:
                log.print(f"{name}: {drawn}")
            continue
        files = [
            str(save(figure, out / file_name(name, page, form)))
            for page, figure in enumerate(drawn.pages, 1)
            for form in forms
        ]
        document["figures"].append({"name": name, "files": files, "notes": drawn.notes})
        if not quiet:
            for note in drawn.notes:
                log.print(f"{name}: {note}")
        if not json:
            console.print(f"Written: {', '.join(files)}")
    if not document["figures"]:
        reasons = "; ".join(f"{skipped['name']}: {skipped['reason']}" for skipped in document["skipped"])
        raise PlotError(f"nothing to draw of {data.scope.title}: {reasons}")
    if json:
        print_json(document)


def _chosen(words: list[str], known: list[str], what: str, hint: str) -> list[str]:
    """The words that are `known`, each once; PlotError for another."""
    from dsabench.spec.messages import near_miss

    found = list(dict.fromkeys(part for word in words for part in word.split(",") if part))
    for word in found:
        if word not in known:
            raise PlotError(f"{what} {word} is unknown{near_miss(word, known)}{hint}")
    return found
