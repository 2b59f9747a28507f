"""`dsabench visualize-selection`: the tokens that a trained model attends to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, OUTPUT, WINDOW, epilog
from dsabench.cli.list_options import ListCommand, integers
from dsabench.cli.options import (
    DeviceOption,
    JsonFlag,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    StoreOption,
    check_out,
)
from dsabench.errors import DataError, SpecError

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection
    from dsabench.selection.stored_run import Inspection

SelectingRunArgument = Annotated[
    str | None,
    typer.Argument(
        help="A run by its id or the start of it; else the newest that selects.",
        metavar="RUN",
        show_default=False,
        autocompletion=completion.runs,
    ),
]
DocumentOption = Annotated[
    int | None,
    typer.Option(
        "--document",
        help="Validation document, counted from 0; else the first that is long enough (of a task: window).",
        metavar="N",
        rich_help_panel=WINDOW,
    ),
]
StartOption = Annotated[
    int,
    typer.Option(
        "--start", help="Token of the document or text where the window starts.", metavar="T", rich_help_panel=WINDOW
    ),
]
TextOption = Annotated[
    str | None, typer.Option("--text", help="A text of your own instead.", metavar="TEXT", rich_help_panel=WINDOW)
]
TextFileOption = Annotated[
    Path | None,
    typer.Option("--text-file", help="The same, from a file (UTF-8).", metavar="FILE", rich_help_panel=WINDOW),
]
QueryOption = Annotated[
    int | None,
    typer.Option(
        "--query",
        help="Position whose keys are marked in the terminal; else the last (of a task: the last that asks).",
        metavar="T",
        rich_help_panel=WINDOW,
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        help="Layer shown in the terminal; else the last (of a task: the one that selects most targets).",
        metavar="N",
        rich_help_panel=WINDOW,
    ),
]
LayersOption = Annotated[
    list[int] | None, integers("--layers", "Only these layers, in terminal, picture and page.", rich_help_panel=WINDOW)
]
ExportOption = Annotated[
    Path | None,
    typer.Option(
        "--export", help="Also write every selected key to this Parquet file.", metavar="FILE", rich_help_panel=OUTPUT
    ),
]

_EXAMPLES = (
    ("The newest run that selects", "dsabench visualize-selection"),
    ("One query and layer of a run", "dsabench visualize-selection dsa-L256-s42 --query 200 --layer 1"),
    ("A text of your own", 'dsabench visualize-selection --text "The state of the Union is strong."'),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "visualize-selection",
        cls=ListCommand,
        short_help="Show which tokens a model selects.",
        epilog=epilog("verdicts", *_EXAMPLES),
        rich_help_panel=ANSWERS,
    )(visualize_selection)


def visualize_selection(
    run: SelectingRunArgument = None,
    document: DocumentOption = None,
    start: StartOption = 0,
    text: TextOption = None,
    text_file: TextFileOption = None,
    query: QueryOption = None,
    layer: LayerOption = None,
    layers: LayersOption = None,
    export: ExportOption = None,
    device: DeviceOption = "cpu",
    store: StoreOption = Path("runs"),
    out: OutOption = Path("results"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show which tokens a trained model selects, and what it misses.

    Marks a query's keys in the text, prints numbers beside their chance, and writes a picture (PNG) and a page
    (HTML, no network) under --out. The run needs an attention that selects, and its checkpoint.
    """
    from dsabench.cli.console import notifier, stdout_console
    from dsabench.cli.views.json_document import print_json

    own_text = _own_text(text, text_file)
    check_out(out)
    from dsabench.selection.stored_run import inspect_selection

    inspection = inspect_selection(
        store, run, text=own_text, document=document, start=start, layers=layers, device=device or "cpu"
    )
    shown, position = _shown(inspection, layer, query)
    notify = notifier(quiet)
    for note in inspection.notes:
        notify(f"note: {note}")
    files = _write(inspection, out, export)
    if json:
        print_json({**inspection.document(), "files": [str(path) for path in files]})
        return
    from dsabench.cli.views.selection_text import print_inspection

    console = stdout_console()
    print_inspection(inspection, shown, position, console)
    for path in files:
        console.print(f"Written: {path}")


def _shown(inspection: Inspection, layer: int | None, query: int | None) -> tuple[LayerSelection, int]:
    """The layer and the query that the terminal shows. SpecError for one that was not looked at."""
    position = inspection.default_query if query is None else query
    if not 0 <= position < inspection.length:
        raise SpecError(f"--query {query}: the window has {inspection.length} tokens, 0 to {inspection.length - 1}")
    layers = {one.layer: one for one in inspection.layers}
    if layer is not None and layer not in layers:
        raise SpecError(f"--layer {layer}: the layers shown are {', '.join(map(str, layers))}")
    return inspection.default_layer if layer is None else layers[layer], position


def _write(inspection: Inspection, out: Path, export: Path | None) -> list[Path]:
    """Write the picture, the page and, to `export`, every selected key; returns the files."""
    from dsabench.selection.maps import selection_map
    from dsabench.selection.stored_run import export_selection
    from dsabench.selection.text_page import selection_page

    files = [
        selection_map(inspection, out / f"{inspection.file_stem}.png"),
        selection_page(inspection, out / f"{inspection.file_stem}.html"),
    ]
    if export is not None:
        files.append(export_selection(inspection.layers, export, inspection.questions))
    return files


def _own_text(text: str | None, file: Path | None) -> str | None:
    """The text of --text, or of --text-file as training reads it. SpecError for both, DataError for what is no text."""
    if file is None:
        return text
    if text is not None:
        raise SpecError("--text and --text-file replace each other; keep one")
    from dsabench.data.sources.readers import whole_text

    try:
        return whole_text(file)
    except DataError as error:
        raise DataError(f"--text-file {error}") from None
