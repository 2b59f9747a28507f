"""The list of metrics: its columns are those that files have had from the first, and what it says is said once."""

from __future__ import annotations

from pathlib import Path

import pytest

import dsabench
from dsabench.analysis.comparison_row import mean_fields
from dsabench.metrics import METRICS, columns, compared, means, spreads
from dsabench.metrics.glossary import glossary
from dsabench.spec.run import validate
from dsabench.store import read_metrics
from dsabench.store.table import fixed_columns
from dsabench.sweeps.single_run import train

SETTINGS = {"vocab_size", "batch_size", "tokens_per_step", "micro_batch", "recompute", "compile", "attention_backend"}
"""Of a summary; and `leak`, what the audit says."""

OF_RECORDS = {"kind", "step", "stage", "shared", "loss_by_position"}
"""What records say beside metrics."""


def test_columns_of_files_keep_their_names_and_order() -> None:
    """Whoever reads a file by position finds what was there before; a new metric may only be added to these."""
    assert list(fixed_columns()) == [
        *("run_id", "status", "attention", "length", "seed", "steps", "params", "indexer_params", "tokens", "flops"),
        *("train_loss", "val_loss", "val_bits_per_byte", "val_accuracy", "unigram_loss"),
        *("mass_recall", "mass_recall_chance", "step_ms", "tokens_per_second", "peak_memory_mb"),
        *("task_accuracy", "chance_accuracy", "target_recall", "target_recall_best", "target_recall_chance"),
        *("epochs", "leak", "sweep", "error", "created", "updated", "version", "order", "seal"),
    ]
    assert [name for name, dtype in columns().items() if dtype == "Int64"] == [
        "steps", "params", "indexer_params", "tokens",
    ]  # fmt: skip
    assert list(mean_fields()) == [
        *("mass_recall", "mass_recall_chance", "target_recall_best", "target_recall_chance"),
        *("task_accuracy", "baseline_task_accuracy", "chance_accuracy", "epochs", "baseline_epochs"),
        *("k_effective", "baseline_k_effective"),
    ]
    assert spreads() == ["val_loss", "val_accuracy", "step_ms"]
    assert means() == [
        *("val_bits_per_byte", "train_loss", "unigram_loss", "tokens_per_second", "mass_recall", "mass_recall_chance"),
        *("params", "indexer_params", "task_accuracy", "chance_accuracy"),
        *("target_recall_best", "target_recall_chance", "epochs", "k_effective"),
    ]


def test_entries_are_whole() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name
        assert not metric.chance or METRICS[metric.chance].unit == metric.unit
        assert not metric.compared or (metric.better and metric.digits is not None and metric.unit), name
        assert metric.meaning[0] != metric.meaning[0].upper() or metric.meaning[1].isupper(), f"{name}: no phrase"
        assert not metric.meaning.endswith(".") and (not metric.remark or metric.remark.endswith(".")), name
    assert len({metric.words for metric in METRICS.values()}) == len(METRICS)
    assert compared().keys() == {
        *("val_loss", "val_bits_per_byte", "generalisation_gap", "val_accuracy", "task_accuracy"),
        *("step_ms", "tokens_per_second", "peak_memory_mb", "near_copy_loss", "far_copy_loss"),
        *("extrapolated_loss", "extrapolated_accuracy"),
    }


@pytest.mark.parametrize("scored", ["token", "answer", "token or answer"])
def test_a_glossary_speaks_of_what_is_scored(scored: str) -> None:
    text = dict(glossary(scored))
    assert f"in nats per {scored}; lower is better" in text["validation loss (val loss)"]
    assert ("task accuracy" in text) == (scored != "token")
    assert ("validation bits per byte" in text) == (scored != "answer")


def test_every_number_that_a_run_records_is_in_the_list(corpus: Path, tmp_path: Path) -> None:
    model = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 8, "n_experts": 2, "experts_per_token": 1}
    attention = {"kind": "dsa", "top_k": 4, "indexer": {"n_heads": 1, "head_dim": 8}}
    training = {"steps": 4, "batch_size": 4, "warmup_steps": 1, "eval_every": 2, "eval_tokens": 128, "log_every": 1}
    data = {"source": "task:recall", "task": {"n_pairs": 2, "n_keys": 4, "n_values": 4}}
    values = {"length": 16, "attention": attention, "model": model, "train": training, "engine": {"device": "cpu"}}
    record = train(validate({**values, "data": data}), store=tmp_path)
    assert record.summary.keys() - SETTINGS - {"leak"} <= METRICS.keys()
    recorded = {name for one in read_metrics(tmp_path, record.run_id) for name in one}
    assert recorded - OF_RECORDS - {"target_recall_by_layer"} <= METRICS.keys()
    steps = {metric.name for metric in METRICS.values() if metric.source == "steps"}
    assert steps <= recorded, "no entry of what is recorded no more"


@pytest.mark.parametrize("name", ["val_loss", "mass_recall", "unigram_loss", "task_accuracy", "target_recall_best"])
def test_a_meaning_is_written_once(name: str) -> None:
    """Whoever shows a metric takes its words from the list: seven wordings would be seven metrics to a reader."""
    package = Path(dsabench.__file__).parent
    files = [path for ending in ("py", "j2", "html") for path in package.rglob(f"*.{ending}")]
    there = [path.name for path in files if METRICS[name].meaning in path.read_text(encoding="utf-8")]
    assert there == ["entries.py"]
