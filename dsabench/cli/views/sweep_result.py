"""The result of a sweep: its table on stdout, and its files and picture under --out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsabench.cli.console import stdout_console

if TYPE_CHECKING:
    from dsabench.sweeps.plan import PlannedRun


def report_sweep(sweep_id: str, planned: Sequence[PlannedRun], store: Path, out: Path, as_json: bool) -> None:
    """Write the experiment's files and picture under `out`, and print its table (or summary.json) on stdout."""
    from dsabench.analysis.compare import compare, too_good
    from dsabench.analysis.pairing import find_pairs
    from dsabench.analysis.provenance import warnings
    from dsabench.analysis.results_table import experiment_table, not_averaged, write_results
    from dsabench.analysis.rungs import on_rungs, rungs_of
    from dsabench.analysis.scope import look_at
    from dsabench.analysis.variants import label_variants
    from dsabench.cli.views.compare_tables import comparison_lines
    from dsabench.cli.views.results_table_text import experiment_lines
    from dsabench.figures.catalogue import file_name
    from dsabench.figures.sequence_length import sequence_length_comparison
    from dsabench.store import load_metrics, load_runs, read_sweep

    ids = [run.run_id for run in planned]
    runs = load_runs(store)
    runs = on_rungs(runs[runs["run_id"].isin(ids)], read_sweep(store, sweep_id))
    metrics = load_metrics(store, run_ids=ids)
    files = write_results(runs, metrics, out, sweep=sweep_id)
    files.append(sequence_length_comparison(runs, metrics, out / file_name("experiment", 1, "png")))
    if as_json:
        print((out / "summary.json").read_text(encoding="utf-8"))
        return
    console = stdout_console()
    dense = bool((runs["attention"] == "dense").any())
    if rungs_of(runs) and runs["attention"].nunique() > 1 and dense:
        comparison_lines(compare(look_at(store, sweep=sweep_id)), console)
    else:
        experiment_lines(experiment_table(runs), console, not_averaged(runs))
        unbelievable = too_good(find_pairs(label_variants(runs), "dense").frame) if dense else []
        for line in [*unbelievable, *warnings(runs)]:
            console.print(f"WARNING: {line}.", soft_wrap=True)
    folders = dict.fromkeys(path.parent for path in files if path.parent != out)
    written = [*(path for path in files if path.parent == out), *folders]
    console.print(f"Written: {', '.join(map(str, written))}")
    console.print(f"Every run: {store} (pandas.read_parquet('{store / 'index.parquet'}'))")
