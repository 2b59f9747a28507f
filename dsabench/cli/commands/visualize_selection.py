"""`dsabench visualize-selection`: which tokens a trained model attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.list_options import ListCommand, integers
from dsabench.cli.options import Device, Json, NoPlugins, Out, Quiet, Store


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("visualize-selection", cls=ListCommand, short_help="Show which tokens a model selects.")(
        visualize_selection
    )


def visualize_selection(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run by its id or the start of it; else the newest that selects.",
            metavar="[RUN]",
            show_default=False,
        ),
    ] = None,
    document: Annotated[
        int | None,
        typer.Option(help="Validation document, from 0; else the first long enough. Of a task: window.", metavar="N"),
    ] = None,
    start: Annotated[int, typer.Option(help="Token of the document or text where the window starts.", metavar="T")] = 0,
    text: Annotated[str | None, typer.Option("--text", help="A text of your own instead.", metavar="TEXT")] = None,
    text_file: Annotated[Path | None, typer.Option(help="The same, from a file (UTF-8).", metavar="FILE")] = None,
    query: Annotated[
        int | None,
        typer.Option(help="Position whose keys the terminal marks; else the last, of a task that asks.", metavar="T"),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Layer that the terminal shows; else the last, of a task that selects most targets.", metavar="N"
        ),
    ] = None,
    layers: Annotated[list[int] | None, integers("--layers", "Only these layers, everywhere.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write every selected key to this Parquet file.", metavar="FILE")
    ] = None,
    device: Device = "cpu",
    store: Store = Path("runs"),
    out: Out = Path("results"),
    no_plugins: NoPlugins = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which tokens a trained model selects, and what it misses.

    Marks a query's keys in the text, prints numbers beside their chance, and writes a picture (PNG) and a page
    (HTML, no network) under --out. The run needs an attention that selects, and its checkpoint.
    """
    from dsabench.cli.progress import stderr_console
    from dsabench.cli.views.outcome import check_out, print_json, stdout_console
    from dsabench.errors import SpecError

    own_text = _own_text(text, text_file)
    check_out(out)
    from dsabench.selection.stored_run import export_selection, inspect_selection

    inspection = inspect_selection(
        store, run, text=own_text, document=document, start=start, layers=layers, device=device or "cpu"
    )
    query = inspection.default_query if query is None else query
    if not 0 <= query < inspection.length:
        raise SpecError(f"--query {query}: the window has {inspection.length} tokens, 0 to {inspection.length - 1}")
    shown = {one.layer: one for one in inspection.layers}
    if layer is not None and layer not in shown:
        raise SpecError(f"--layer {layer}: the layers shown are {', '.join(map(str, shown))}")

    from dsabench.selection.maps import selection_map
    from dsabench.selection.text_page import selection_page

    if not quiet:
        for note in inspection.notes:
            stderr_console().print(f"note: {note}")
    files = [
        selection_map(inspection, out / f"selection_{inspection.run_id}.png"),
        selection_page(inspection, out / f"selection_{inspection.run_id}.html"),
    ]
    if export is not None:
        files.append(export_selection(inspection.layers, export, inspection.questions))
    if json:
        print_json({**inspection.document(), "files": [str(path) for path in files]})
        return
    from dsabench.cli.views.selection_text import print_inspection

    console = stdout_console()
    print_inspection(inspection, inspection.default_layer if layer is None else shown[layer], query, console)
    for path in files:
        console.print(f"Written: {path}")


def _own_text(text: str | None, file: Path | None) -> str | None:
    """What --text or --text-file give. Raises SpecError for both, DataError for a file that is no text."""
    from dsabench.errors import DataError, SpecError

    if file is None:
        return text
    if text is not None:
        raise SpecError("--text and --text-file replace each other; keep one")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text-file {file}: {getattr(error, 'strerror', None) or error}") from None
