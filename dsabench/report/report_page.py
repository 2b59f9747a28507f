"""report.html: the answer of a store with everything that it rests on, in one file that fetches nothing.

The same store gives the same bytes: the page says when the newest of its runs was written, not when it was made.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsabench.analysis import provenance
from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Check, Comparison
from dsabench.analysis.formats import best_settings_grid, cost_grid, ladder_grid, notes, search_grid, verdict_grid
from dsabench.analysis.grid import Grid
from dsabench.analysis.record_checks import check_alone, said_first
from dsabench.analysis.scope import Scope
from dsabench.analysis.size_tables import size_grids
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import display_name, scored_unit
from dsabench.analysis.wording import mean_lines, trend_lines
from dsabench.figures.catalogue import FIGURES, draw, fitting
from dsabench.figures.data import FigureData, figure_data
from dsabench.metrics import METRICS
from dsabench.metrics.glossary import glossary
from dsabench.plain import signs, visible
from dsabench.report.inline import inline_svg
from dsabench.report.selection_part import SelectionView, chosen_run, selection_view
from dsabench.store.files import write_file

FILE = "report.html"

MOST_PAGES = 4
"""Pages of one figure that the report shows; `dsabench plot` draws all."""

MOST_LEFT_OUT = 400
"""Runs without a partner that are listed before the rest are only counted."""

_ORDER = (
    *("forest", "conversion", "sizes", "experiment", "task", "sparsity", "positions"),
    *("learning", "indexer", "flops", "seconds", "cost"),
)
"""The figures in the order of the questions that a reader asks; others follow."""


class Report(NamedTuple):
    """A report that was written."""

    files: list[Path]
    """The report, and what had to be put beside it."""
    scope: str
    """The runs that it is about, in words."""
    notes: list[str]
    """Notes on what is missing and what a reader must know, a line each."""
    checks: list[Check]
    comparison: Comparison | None
    selection: str | None
    """The run whose selection is shown."""


class Drawing(NamedTuple):
    """One page of a figure."""

    name: str
    """The figure's name in FIGURES."""
    id: str
    caption: str
    svg: Markup
    notes: list[str]
    """Notes below the figure's first page."""


def write_report(
    scope: Scope,
    out: Path,
    *,
    baseline: str = "dense",
    margin: float | None = None,
    run: str | None = None,
    selection: bool = True,
) -> Report:
    """Write report.html about the runs of `scope` into the folder `out`.

    run: whose selection is shown, its id or the start of it; without one the newest that has a checkpoint, and none
    without `selection`.
    Raises ScopeError for a baseline that no run has (one without dense runs is a report without a verdict), StoreError
    for a `run` that is not there, ResultsError when nothing can be written.
    """
    scope = _movable(scope)
    data = figure_data(scope, baseline)
    chosen = chosen_run(data, run) if selection else None
    found = None
    if data.baseline is not None:
        found = compare(scope, baseline=baseline, margin=margin)
        found = found.model_copy(update={"notes": _placeless(found.notes, scope.store)})
        data = dataclasses.replace(
            data, compared=found
        )  # figures show this comparison and its margin, and it is made once
    checks = found.checks if found else check_alone(scope)
    drawings, not_drawn = _drawings(data)
    view = selection_view(data, chosen, out) if selection else "It was left out (--no-selection)."
    if isinstance(view, str):
        view = _placeless([view], scope.store)[0]
    text = _page(scope, data, found, checks, drawings, not_drawn, view)
    files = [write_file(out / FILE, text.encode())]
    said = [*(found.notes if found else _placeless(data.notes, scope.store)), *not_drawn]
    said += [f"figure {drawing.name}: {note}" for drawing in drawings for note in drawing.notes]
    if isinstance(view, str):
        said += [f"selection: {view}"] if selection else []
        return Report(files, scope.title, said, checks, found, None)
    files += [out / view.file] if view.file else []
    return Report(files, scope.title, said, checks, found, view.run_id)


def _page(
    scope: Scope,
    data: FigureData,
    found: Comparison | None,
    checks: list[Check],
    drawings: list[Drawing],
    not_drawn: list[str],
    view: SelectionView | str,
) -> str:
    labelled = data.runs.drop_duplicates("run_id")
    environments = provenance.environments(scope.runs.drop_duplicates("run_id"))
    scored = scored_unit(labelled.loc[labelled["finished"], "task_accuracy"])
    fields = list(dict.fromkeys(name for environment in environments for name in environment.fields))
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            found=found,
            baseline=display_name(data.baseline or "dense"),
            scored=scored,
            mass_recall=METRICS["mass_recall"],
            glossary=list(glossary(scored)),
            scope=scope,
            date=provenance.newest(scope.runs),
            n_runs=len(labelled),
            n_finished=int(labelled["finished"].sum()),
            tables=_tables(found),
            notes=notes(found) if found else [],
            checks=checks,
            warnings=found.warnings if found else said_first(checks),
            outcomes=Counter(check.outcome for check in checks),
            drawings=drawings,
            not_drawn=not_drawn,
            selection=view if isinstance(view, SelectionView) else None,
            no_selection=view if isinstance(view, str) else "",
            left_out=_left_out(labelled, found),
            most_left_out=MOST_LEFT_OUT,
            environments=environments,
            environment_fields=fields,
            differing={name for name in fields if len({e.fields.get(name, "") for e in environments}) > 1},
            lineage=provenance.lineage(scope.runs),
            data_notes=provenance.data_notes(scope.runs),
            sweeps=provenance.sweep_sources(scope),
            commands=provenance.run_sources(scope.store, labelled),
            most_commands=provenance.MOST_COMMANDS,
            min_pairs=MIN_PAIRS,
            leaks=[row for row in (found.rows if found else []) if row.verdict == "LEAK"],
        )
    )


def _tables(found: Comparison | None) -> list[dict[str, Any]]:
    """Of each setting: its name, sentences, trends and two grids; then the sizes and the best rates."""
    if found is None:
        return []
    tables: list[dict[str, Any]] = [
        {
            "setting": table.setting,
            "sentences": table.sentences,
            "trends": [*mean_lines(table, found.baseline), *trend_lines(table)],
            "grids": [_filled(verdict_grid(table, found)), _filled(cost_grid(table))],
        }
        for table in found.tables
    ]
    if found.rungs and found.tables:
        ladder = ladder_grid(found)
        tables.insert(0, {"setting": ladder.title, "sentences": [], "trends": [], "grids": [ladder]})
    tables += [
        {"setting": sizes.title, "sentences": below, "trends": [], "grids": [_filled(sizes)]}
        for sizes, below in size_grids(found)
    ]
    for grid in (best_settings_grid(found), search_grid(found)):
        if grid.rows:
            tables.append({"setting": grid.title, "sentences": [], "trends": [], "grids": [_filled(grid)]})
    return tables


def _filled(grid: Grid) -> Grid:
    """The grid with the length in every row, for readers who hear a table row by row."""
    rows, length = [], ""
    for row in grid.rows:
        length = row[0] or length
        rows.append((length, *row[1:]))
    return grid._replace(rows=rows)


def _drawings(data: FigureData) -> tuple[list[Drawing], list[str]]:
    """The figures with what must be known of each, and those that are not drawn and why."""
    drawings, not_drawn = [], []
    there = fitting(data)
    for name in [*_ORDER, *(name for name in FIGURES if name not in _ORDER)]:
        if name not in there:
            continue
        what = FIGURES[name].what
        drawn = draw(name, data)
        if isinstance(drawn, str):
            not_drawn.append(f"figure {name} ({what}): {drawn}")
            continue
        notes, kept = list(drawn.notes), drawn.pages[:MOST_PAGES]
        if len(drawn.pages) > len(kept):
            notes.append(f"{len(kept)} of {len(drawn.pages)} pages are here; dsabench plot draws all")
        for page, figure in enumerate(kept, 1):
            number = f" ({page} of {len(drawn.pages)})" if len(drawn.pages) > 1 else ""
            caption = what[0].upper() + what[1:] + number
            identity = f"{name}-{page}"
            label = f"{caption}. {' '.join(figure.get_supxlabel().split())}"
            svg = inline_svg(figure, identity, label)
            drawings.append(Drawing(name, f"figure-{identity}", caption, svg, notes if page == 1 else []))
    return drawings, not_drawn


def _left_out(labelled: pd.DataFrame, found: Comparison | None) -> list[tuple[str, str]]:
    """(run, why it is in no pair), with a failed run's error."""
    if found is None:
        left_out = labelled.loc[labelled["reason"] != "", ["run_id", "reason", "error"]].fillna("")
        runs = [(run["run_id"], run["reason"], run["error"]) for run in left_out.to_dict("records")]
    else:
        runs = [(run.run_id, run.reason, run.error) for run in found.left_out]
    return [(run_id, f"{why}: {error}" if error else why) for run_id, why, error in runs]


def _movable(scope: Scope) -> Scope:
    """The scope without the path of its store, so that the report does not depend on it."""
    title = re.sub(rf" of {re.escape(str(scope.store))}(?= |$)", " of the store", scope.title)
    return dataclasses.replace(scope, title=title, notes=_placeless(scope.notes, scope.store))


def _placeless(lines: list[str], store: Path) -> list[str]:
    """The notes, with files named by their paths inside the store."""
    place = re.escape(str(store))
    named = [re.sub(rf"(?<![\w./-]){place}/", "", line) for line in lines]
    if not store.is_absolute():  # `runs` is a word, too
        return named
    return [re.sub(rf"{place}(?![\w/.-])", "the store", line) for line in named]


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("dsabench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["signs"] = signs
    return templates


def _shown(value: Any) -> Any:
    """Text from records, which may hold anything: control characters are spelt out, ends of lines are kept."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(visible(line) for line in value.split("\n"))


def plain(report: Report) -> dict[str, Any]:
    """The report as one JSON document: its files, and what it says in short."""
    tables = report.comparison.tables if report.comparison else []
    return {
        "report": str(report.files[0]),
        "files": [str(path) for path in report.files],
        "scope": report.scope,
        "answer": report.comparison.answer if report.comparison else "",
        "warnings": report.comparison.warnings if report.comparison else said_first(report.checks),
        "sentences": [sentence for table in tables for sentence in table.sentences],
        "checks": [check.model_dump(mode="json") for check in report.checks],
        "selection": report.selection,
        "notes": report.notes,
    }
