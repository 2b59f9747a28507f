"""The part of the report that shows what a trained run selects, when the store has the weights to show it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from dsabench.analysis.grid import Grid
from dsabench.errors import DsabenchError, StoreError
from dsabench.figures.data import FigureData
from dsabench.figures.style import settle, styled
from dsabench.metrics import METRICS
from dsabench.report.inline import inline_svg
from dsabench.spec.rerun_command import TRAIN_SELECTING
from dsabench.spec.stored_spec import needed_plugins
from dsabench.store import find_checkpoint, find_run, read_run

if TYPE_CHECKING:
    from dsabench.selection.numbers import Numbers
    from dsabench.selection.stored_run import Inspection

EMBEDDED = 2_000_000
"""Bytes up to which the interactive page is part of the report; a larger one is a file beside it."""

_COLUMNS = (
    (METRICS["mass_recall"].words, "mass_recall"),
    ("best\npossible", "mass_recall_best"),
    ("of the\nbest keys", "oracle_overlap"),
    ("of the\nnearest", "nearest_kept"),
    ("of the\nfirst", "first_kept"),
)
"""Heading of a column and the number that it shows, beside its chance where that has one."""

_TARGETS = (("of the\ntargets", "target_recall"),)
"""The columns that a task has, too."""


class SelectionView(NamedTuple):
    """What the report shows of one run's selection."""

    run_id: str
    title: str
    notes: list[str]
    numbers: Grid
    picture: Markup
    page: str
    """The interactive page, to be embedded; empty when it is in `file`."""
    file: str
    """Name of the file with the page, beside the report; empty when it is embedded."""


def chosen_run(data: FigureData, wanted: str | None) -> str | None:
    """The run `wanted` (its id or the start of it); else the newest finished one of `data` that selects, has a
    checkpoint, and can be opened without executing a plugin file; or None. Loads no torch.

    Raises:
        StoreError: no run, or several, are called `wanted`.
    """
    if wanted is not None:
        return find_run(data.scope.store, wanted).run_id
    selects = ~(data.runs["k"] >= data.runs["length"]) & (data.runs["attention"] != "dense")  # k of a plugin: unknown
    runs = data.runs[data.runs["finished"] & selects].sort_values(["order", "run_id"], ascending=False)
    return next((run for run in runs["run_id"] if _can_be_shown(data.scope.store, run)), None)


def _can_be_shown(store: Path, run_id: str) -> bool:
    try:
        return find_checkpoint(store, run_id) is not None and not needed_plugins(read_run(store, run_id).spec)
    except StoreError:  # gone or damaged since the store was read
        return False


def selection_view(data: FigureData, run_id: str | None, out: Path) -> SelectionView | str:
    """The view of a run's checkpoint, or why there is none; writes the page to `out` when it is too large to embed."""
    if run_id is None:
        return (
            "No finished run of these selects and has its checkpoint in the store (a copy may have been made without "
            f"checkpoints), so what it selects cannot be shown. {TRAIN_SELECTING} trains one. A run whose "
            "attention is a plugin's is shown when it is named (dsabench report --run RUN): its file is then executed."
        )
    if find_checkpoint(data.scope.store, run_id) is None:
        return f"Run {run_id} has no checkpoint in the store, so what it selects cannot be shown."
    from dsabench.selection.stored_run import inspect_selection  # its first use of a model imports torch

    try:
        inspection = inspect_selection(data.scope.store, run_id)
    except DsabenchError as error:
        return f"What {run_id} selects cannot be shown: {error}"
    return _view(inspection, out)


def _view(inspection: Inspection, out: Path) -> SelectionView:
    from dsabench.selection import maps, text_page

    page, file = text_page.page(inspection), ""
    if len(page.encode()) > EMBEDDED:
        file = text_page.selection_page(inspection, out / f"{inspection.file_stem}.html").name
        page = ""
    label = f"For each layer, which keys each query selected, beside full attention. {inspection.title}"
    with styled():
        picture = inline_svg(settle(maps.draw(inspection)), "map", label, themed=False)
    return SelectionView(
        inspection.run_id, inspection.title, inspection.notes, _grid(inspection.numbers), picture, page, file
    )


def _grid(numbers: Numbers) -> Grid:
    layers = numbers["layers"]
    named = [(str(values["layer"]), values) for values in layers] + [("mean", numbers["mean"])] * (len(layers) > 1)
    columns = (*_COLUMNS, *(_TARGETS if "target_recall_best" in numbers else ()))
    rows = [(name, *(_cell(values, column) for _, column in columns), _never(values)) for name, values in named]
    headings = ("layer", *(heading for heading, _ in columns), "never\nselected")
    return Grid("Selection by layer", headings, rows, ())


def _cell(values: Numbers, column: str) -> str:
    value, chance = values[column], values.get(f"{column}_chance")
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({chance:.2f})" if chance is not None else "")


def _never(values: Numbers) -> str:
    value, chance = values["never_selected"], values["never_selected_chance"]
    return "-" if value is None else f"{value:g} ({chance:.1f})"
