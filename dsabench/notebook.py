"""Sweeps and comparisons for a notebook: what the commands `sweep` and `compare` do, with tables as their results."""

from __future__ import annotations

import copy
import html
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dsabench.analysis import compare as judging
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.formats import frame
from dsabench.analysis.scope import look_at
from dsabench.cli.console import PlainConsole, stderr_console
from dsabench.cli.views.compare_tables import comparison_lines
from dsabench.cli.views.run_outcome import describe
from dsabench.errors import ScopeError, SpecError
from dsabench.plain import json_values
from dsabench.progress.display import Display
from dsabench.spec.config import DEFAULT_CONFIG, load_sweep
from dsabench.spec.sweep import Sweep
from dsabench.store import check_writable, load_runs

WIDTH = 100
"""Columns of a comparison's text where no terminal says its own."""


def sweep(
    config: str | Path | Sweep = DEFAULT_CONFIG,
    *,
    axes: Mapping[str, Sequence[Any]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    store: str | Path = "runs",
    margin: float | None = None,
    tune: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
    concurrency: int | None = None,
    on_oom: Literal["fail", "accumulate"] = "fail",
    progress: bool = True,
) -> pd.DataFrame:
    """Train every combination of a config's axes, in this process, as `dsabench sweep` does.

        runs = dsabench.sweep("quick", axes={"length": [64, 128], "seed": [1, 2, 3]}, overrides={"train.steps": 100})

    config: a shipped config's name, a YAML file, or what `dsabench.spec.config.load_sweep` gives.
    overrides: {field path: value}, as `--set`.
    axes: {field path: values}, as `--lengths` and its like; they replace the config's axis over the same field.
    margin: the loss in nats that still counts as not worse, kept with the sweep.
    tune: {"trials": 12, "over": {field path: {"low": ..., "high": ...} or choices}, ...}, the config's `tune`: trials
        that choose each variant's settings first; they are runs of the store, and none of the rows.

    Returns the rows of `load_runs` of its runs, in the order of the plan. `status` and `error` say what became of each:
    a run that fails does not stop the others, and one that is done is not trained again. `.attrs["sweep"]` is the
    sweep's id, for `compare(store, sweep=...)`; without it `compare` takes the newest.

    progress: shows a bar on a terminal, and elsewhere a line a run, on stderr.

    Raises DsabenchError for bad input before anything is trained, and lets KeyboardInterrupt through: the same call
    goes on where it was.
    """
    experiment = copy.deepcopy(config) if isinstance(config, Sweep) else load_sweep(str(config))
    for path, value in sorted((overrides or {}).items(), key=lambda item: item[0] != "plugins"):  # kinds come from them
        experiment.set(path, value, "overrides: ")
    for path, values in (axes or {}).items():
        chosen: Any = list(values) if isinstance(values, tuple | range) else values
        experiment.set_axis(path, chosen, "axes: ")
    if margin is not None:
        experiment.set_verdict({"margin": margin}, lambda path: "margin: ")
    if tune is not None:
        experiment.set_tune(tune, lambda path: "tune: ")
    specs = experiment.runs()

    from dsabench.compilation.ahead import compiling, shapes_of
    from dsabench.engine.device import resolve
    from dsabench.engine.random_state import kept_random_state
    from dsabench.sweeps import plan
    from dsabench.sweeps.schedule import run_sweep
    from dsabench.sweeps.search import search_of
    from dsabench.sweeps.sweep_identity import sweep_id

    store = Path(store)
    check_writable(store)
    execution = resolve(specs[0].engine)
    search = search_of(experiment, store, retry_failed, on_oom)
    planned = plan.plan(specs, store) if search is None else search.outlook()
    named = str if search is None else search.outlook_name
    if (concurrency or 1) > 1 and (why := plan.why_alone(specs, execution)):
        raise SpecError(f"concurrency = {concurrency}: {why}; leave it out or give 1")
    at_a_time = plan.choose_concurrency(planned, execution) if concurrency is None else concurrency
    times = plan.timetable(planned, execution, at_a_time=at_a_time)
    done = sum(run.status == "done" for run in planned)
    left = [run.spec for run in planned if run.is_left]
    with (
        compiling(shapes_of(left, execution), execution) as kernels,
        kept_random_state(),
        Display(times, console=stderr_console(), done=done, quiet=not progress) as display,
    ):
        plan.check_data(planned, display.note_once, display.counted)
        for record in run_sweep(
            experiment,
            planned if search is None else search.round,
            store,
            execution,
            retry_failed=retry_failed,
            concurrency=at_a_time,
            on_oom=on_oom,
            search=search,
            started=lambda run: display.start(named(run.run_id), run.run_id),
            notify=display.note_once,
            counted=display.counted,
            kernels=kernels,
        ):
            display.finish(named(record.run_id), describe(record))
    runs = load_runs(store).set_index("run_id", drop=False).rename_axis(None)
    names = [run.run_id for run in plan.of_sweep(planned)] if search is None else search.run_ids()
    runs = runs.loc[[name for name in names if name in runs.index]].reset_index(drop=True)  # none of a failed parent's
    runs.attrs["sweep"] = sweep_id(experiment, planned) if search is None else search.identity
    return runs


@dataclass(frozen=True)
class Compared:
    """Every variant against the baseline. Shown as text it is what `dsabench compare` prints."""

    comparison: Comparison
    """The answer as an object: `.rows[0].verdict`, `.warnings`, ..."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a length and variant, as `compare --csv` prints them: difference_mean, verdict, time_ratio, ..."""
        rows = frame(self.comparison)
        return rows.astype({name: "Int64" for name in ("k", "seeds_needed") if name in rows})

    @cached_property
    def document(self) -> dict[str, Any]:
        """The document of `compare --json`; `dsabench schema compare` describes it."""
        document: dict[str, Any] = json_values(self.comparison.model_dump(mode="json"))
        return document

    def __str__(self) -> str:
        return self._text(shutil.get_terminal_size((WIDTH, 0)).columns)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(self._text(WIDTH))}</pre>'

    def _text(self, width: int) -> str:
        text = io.StringIO()
        comparison_lines(self.comparison, PlainConsole(file=text, width=width, highlight=False, markup=False))
        return text.getvalue().rstrip()


def compare(
    store: str | Path = "runs",
    *,
    sweep: str | None = None,
    everything: bool = False,
    where: str | None = None,
    baseline: str = "dense",
    metric: str = "val_loss",
    margin: float | None = None,
) -> Compared:
    """Compare every variant with the baseline, seed by seed, as `dsabench compare` does.

    The runs of the newest sweep; of the one whose id is or starts with `sweep`; or of `everything` in the store.
    `where` keeps the runs for which a condition holds: `length == 256 and attention == "dsa"`. `margin`, in nats per
    token, replaces the one that the sweep fixed beforehand.

    Raises:
        ScopeError: no such sweep, metric or baseline, a condition that cannot be read, or a margin that is not above 0.
        StoreError: there is no such store, or it has no runs.
    """
    if margin is not None and not 0 < margin < float("inf"):
        raise ScopeError(f"margin = {margin:g} is not accepted; accepted: a number above 0")
    scope = look_at(store, sweep=sweep, everything=everything, where=where)
    return Compared(judging.compare(scope, baseline=baseline, metric=metric, margin=margin))
