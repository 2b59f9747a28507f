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
    from dsabench.analysis.compare import compare
    from dsabench.analysis.damaged_runs import damage_sentence, damaged_ids
    from dsabench.analysis.record_checks import check_alone, said_first
    from dsabench.analysis.results_table import experiment_table, not_averaged, write_results
    from dsabench.analysis.scope import look_at
    from dsabench.analysis.variants import label_variants
    from dsabench.cli.views.compare_tables import answer_lines, comparison_lines, warning_lines
    from dsabench.cli.views.results_table_text import experiment_lines
    from dsabench.figures.catalogue import file_name
    from dsabench.figures.sequence_length import sequence_length_comparison
    from dsabench.store import load_metrics

    stored = [run.run_id for run in planned if not run.for_children and (store / run.run_id).is_dir()]
    if not stored:  # their parents failed
        return
    scope = look_at(store, sweep=sweep_id)
    runs = scope.runs
    damaged = damaged_ids(runs)
    metrics = load_metrics(store, run_ids=[name for name in stored if name not in damaged])
    found = compare(scope) if (label_variants(runs)["attention"] == "dense").any() else None
    warnings = found.warnings if found else said_first(check_alone(scope))
    answer = found.answer if found else "No answer: no dense run among these, with which others are compared."
    if damaged and not found:
        answer += f"\n{damage_sentence(runs, named=False)}."
    files = write_results(runs, metrics, out, sweep=sweep_id, answer=answer, warnings=warnings)
    files.append(sequence_length_comparison(runs, metrics, out / file_name("experiment", 1, "png")))
    if as_json:
        print((out / "summary.json").read_text(encoding="utf-8"))
        return
    console = stdout_console()
    if found and found.rungs and found.tables:
        comparison_lines(found, console)
    else:
        warning_lines(warnings, console)
        experiment_lines(experiment_table(runs), console, not_averaged(runs))
        if runs["attention"].nunique() > 1:
            console.print()
            answer_lines(answer, console)
    folders = dict.fromkeys(path.parent for path in files if path.parent != out)
    written = [*(path for path in files if path.parent == out), *folders]
    console.print(f"Written: {', '.join(map(str, written))}")
    console.print(f"Every run: {store} (pandas.read_parquet('{store / 'index.parquet'}'))")
