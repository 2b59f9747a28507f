"""dsabench: does DeepSeek Sparse Attention learn as well as dense attention, where is it faster, what does it look at?

What the commands do, a notebook can do:

    spec = dsabench.load_spec("seed", overrides={"length": 64})     # a RunSpec
    model = dsabench.build_model(spec)                              # model(tokens_BT).logits_BTV
    record = dsabench.train(spec, store="runs")                     # a RunRecord
    runs = dsabench.sweep("quick", axes={"length": [64, 128]})      # a DataFrame, one row a run
    answer = dsabench.compare("runs")                               # print(answer); answer.frame, answer.document
    runs, metrics = dsabench.load_runs("runs"), dsabench.load_metrics("runs")
    positions = dsabench.load_lists("runs")                         # loss by position, one row a position
    model = dsabench.load_model("runs", record.run_id)
    times = dsabench.bench_layer(lengths=[4096, 16384])             # times.cells, times.crossovers
    seen = dsabench.inspect_selection("runs", record.run_id)        # seen.layers, seen.numbers
    found = dsabench.diff_runs("runs", "dsa-L64-s1", "dense-L64-s1")  # found.spec, found.environment, found.outcome
    folder = dsabench.export_model("runs", dense.run_id, "model")   # for transformers.AutoModelForCausalLM
    again = dsabench.reproduce("runs", record.run_id)               # again.verdict, again.records, again.weights
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dsabench._version import __version__ as __version__

if TYPE_CHECKING:
    from dsabench.attention.plugins import no_plugins as no_plugins
    from dsabench.bench.api import bench_layer as bench_layer
    from dsabench.errors import DsabenchError as DsabenchError
    from dsabench.models import build_model as build_model
    from dsabench.models import load_model as load_model
    from dsabench.models import load_spec as load_spec
    from dsabench.notebook import compare as compare
    from dsabench.notebook import sweep as sweep
    from dsabench.reproduction.difference import diff_runs as diff_runs
    from dsabench.reproduction.train_again import reproduce as reproduce
    from dsabench.selection.stored_run import inspect_selection as inspect_selection
    from dsabench.store import load_lists as load_lists
    from dsabench.store import load_metrics as load_metrics
    from dsabench.store import load_runs as load_runs
    from dsabench.sweeps.single_run import train as train
    from dsabench.trackers.model_folders import export_model as export_model

_HOME = {
    "DsabenchError": "errors",
    "bench_layer": "bench.api",
    "build_model": "models",
    "compare": "notebook",
    "diff_runs": "reproduction.difference",
    "export_model": "trackers.model_folders",
    "inspect_selection": "selection.stored_run",
    "load_lists": "store",
    "load_metrics": "store",
    "load_model": "models",
    "load_runs": "store",
    "load_spec": "models",
    "reproduce": "reproduction.train_again",
    "no_plugins": "attention.plugins",
    "sweep": "notebook",
    "train": "sweeps.single_run",
}

__all__ = sorted([*_HOME, "__version__"])


def __dir__() -> list[str]:
    """The public names, before they are imported."""
    return __all__


def __getattr__(name: str) -> Any:
    """Import on first use: `import dsabench` loads neither torch nor pandas."""
    if name not in _HOME:
        raise AttributeError(f"module 'dsabench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsabench.{_HOME[name]}"), name)
