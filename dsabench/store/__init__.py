"""The run store: one folder a run, written by one process, read by many, and as a pandas table."""

from dsabench.store.curves import Curves, load_curves
from dsabench.store.health import StoreHealth, check_store
from dsabench.store.index import load_runs
from dsabench.store.layout import check_writable
from dsabench.store.reader import find_checkpoint, find_name, find_run, read_metrics, read_run, run_files
from dsabench.store.records import SCHEMA_VERSION, DamagedError, RunBusyError, RunDoneError, RunRecord, SweepRecord
from dsabench.store.removal import check_removable, remove_runs, sweeps_naming
from dsabench.store.sealing import seal_run
from dsabench.store.sweep_records import read_sweep, readable_sweeps, write_sweep
from dsabench.store.table import load_lists, load_metrics, metrics_in_parts
from dsabench.store.table_file import check_table_path, write_table
from dsabench.store.tuning_records import StudyRecord, TrialRecord, TuningRecord
from dsabench.store.writer import RunWriter

__all__ = [
    "SCHEMA_VERSION",
    "Curves",
    "DamagedError",
    "RunBusyError",
    "RunDoneError",
    "RunRecord",
    "RunWriter",
    "StoreHealth",
    "StudyRecord",
    "SweepRecord",
    "TrialRecord",
    "TuningRecord",
    "check_removable",
    "check_store",
    "check_table_path",
    "check_writable",
    "find_checkpoint",
    "find_name",
    "find_run",
    "load_curves",
    "load_lists",
    "load_metrics",
    "load_runs",
    "metrics_in_parts",
    "read_metrics",
    "read_run",
    "read_sweep",
    "readable_sweeps",
    "remove_runs",
    "run_files",
    "seal_run",
    "sweeps_naming",
    "write_sweep",
    "write_table",
]
