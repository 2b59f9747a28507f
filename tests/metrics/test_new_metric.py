"""A new metric in two places, its entry in the list and the line that computes it: it is then shown everywhere."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from figure_tools import at, caption, pages
from jsonschema import Draft202012Validator
from shell import Shell

from dsabench.analysis.results_table import experiment_table
from dsabench.analysis.scope import look_at
from dsabench.engine import loop
from dsabench.figures.catalogue import FIGURES
from dsabench.metrics import METRICS, Metric
from dsabench.metrics.glossary import page
from dsabench.report import report_page
from dsabench.spec.run import validate
from dsabench.store import load_metrics, load_runs
from dsabench.sweeps.single_run import train

ENTRY = Metric(
    name="val_perplexity", words="perplexity", heading="ppl", meaning="e to the power of the validation loss",
    unit="tokens", better="lower", digits=1, source="evaluation", compared=True, over_seeds="beside", figure="learning",
)  # fmt: skip

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """Two attentions trained for a few steps with a metric that dsabench does not have."""
    folder = tmp_path_factory.mktemp("new_metric") / "runs"
    computed = loop.evaluation_metrics

    def with_one_more(*given: Any, **named: Any) -> dict[str, Any]:
        found = computed(*given, **named)
        return {**found, "val_perplexity": math.exp(found["val_loss"])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, ENTRY.name, ENTRY)
        patch.setattr(loop, "evaluation_metrics", with_one_more)
        for kind in ({"kind": "dense"}, {"kind": "dsa", "top_k": 4, "indexer": {"n_heads": 1, "head_dim": 8}}):
            for seed in SEEDS:
                train(spec_of(kind, seed, corpus), store=folder)
        yield folder


def spec_of(attention: dict[str, Any], seed: int, corpus: Path) -> Any:
    return validate(
        {
            "length": 16,
            "seed": seed,
            "attention": attention,
            "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 8, "n_experts": 2, "experts_per_token": 1},
            "data": {"source": f"path:{corpus}", "tokenizer": "bytes"},
            "train": {"steps": 6, "batch_size": 4, "warmup_steps": 1, "eval_every": 2, "eval_tokens": 128},
            "engine": {"device": "cpu"},
        }
    )


def test_the_index_has_its_column_and_the_records_their_values(store: Path) -> None:
    runs = load_runs(store)
    assert runs["val_perplexity"].to_numpy() == pytest.approx([math.exp(loss) for loss in runs["val_loss"]])
    names = list(pd.read_parquet(store / "index.parquet").columns)
    assert names.index("val_perplexity") < names.index("leak"), "among the columns that are always there"
    evaluations = load_metrics(store).query("kind == 'eval'")
    assert evaluations["val_perplexity"].notna().all() and len(evaluations) == 4 * len(runs)


def test_compare_takes_it_and_has_it_beside_every_comparison(store: Path, shell: Shell) -> None:
    text = shell("compare", "--store", str(store), "--metric", "val_perplexity")[1]
    assert text.startswith("val_perplexity of ") and "DSA against dense (val_perplexity" in text
    means = load_runs(store).groupby("attention")["val_perplexity"].mean()
    assert f"{means['dense']:.1f}" in text and f"{means['dsa']:.1f}" in text
    assert "val_perplexity" in shell("compare", "--store", str(store), "--metric", "ppl")[2], "the error lists it"
    text = shell("compare", "--store", str(store))[1]
    assert f"Perplexity at 16 tokens: dense {means['dense']:.1f}, DSA {means['dsa']:.1f}." in text
    document = json.loads(shell("compare", "--store", str(store), "--json")[1])
    row = document["tables"][0]["rows"][0]
    assert (row["val_perplexity"], row["baseline_val_perplexity"]) == pytest.approx((means["dsa"], means["dense"]))
    Draft202012Validator(json.loads(shell("schema", "compare")[1])).validate(document)
    (row,) = csv.DictReader(io.StringIO(shell("compare", "--store", str(store), "--csv")[1]))
    assert float(row["val_perplexity"]) == pytest.approx(means["dsa"])
    assert experiment_table(load_runs(store))["val_perplexity"].to_list() == pytest.approx(list(means))


def test_a_figure_and_the_report_show_and_explain_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (figure,) = pages("learning", at(store))
    assert "perplexity\n(tokens)" in [axes.get_ylabel() for axes in figure.axes]
    assert "Perplexity: e to the power of the validation loss." in caption(figure)
    monkeypatch.setattr(report_page, "_ORDER", ())
    monkeypatch.setattr(report_page, "FIGURES", {"learning": FIGURES["learning"]})
    report = report_page.write_report(look_at(store), tmp_path, selection=False)
    text = report.files[0].read_text(encoding="utf-8")
    assert "Perplexity at 16 tokens: dense" in text
    assert (
        "<dt>perplexity (ppl)</dt><dd>E to the power of the validation loss, in tokens; lower is better.</dd>" in text
    )
    assert "| `val_perplexity` | tokens | lower | perplexity: e to the power of the validation loss. |" in page()
