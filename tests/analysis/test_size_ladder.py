"""Models of several sizes in a comparison: known gaps and curves are found, and what is no ladder of sizes is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from shell import Shell
from size_store import SHAPES, active, sizes

from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.formats import as_markdown, notes
from dsabench.analysis.scope import look_at
from dsabench.analysis.size_ladder import active_parameters
from dsabench.analysis.size_tables import size_grids, size_name
from dsabench.models import build_model
from dsabench.spec.identity import flatten
from dsabench.spec.run import validate
from dsabench.store import RunRecord

GROWS = 0.006


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DSA is worse by 0.01 nats at a million parameters, and by GROWS more at each tenfold size."""
    store = tmp_path_factory.mktemp("sizes") / "runs"
    sizes(store, gap=lambda x: 0.01 + GROWS * (x - 6), noise=0.0005)
    return store


@pytest.fixture(scope="module")
def found(store: Path) -> Comparison:
    return compare(look_at(store))


def of(tmp_path: Path, **choice: object) -> Comparison:
    sizes(tmp_path / "runs", gap=lambda x: 0.0, **choice)  # type: ignore[arg-type]
    return compare(look_at(tmp_path / "runs"))


def said(found: Comparison) -> str:
    return " ".join(line for _, below in size_grids(found) for line in below)


@pytest.mark.parametrize("attention", [{"kind": "dense"}, {"kind": "dsa", "top_k": 8}])
def test_active_parameters_are_those_that_a_token_meets(attention: dict[str, object]) -> None:
    spec = validate(
        {"length": 32, "attention": attention, "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48}}
    )
    model = build_model(spec)
    own = sum(p.numel() for name, p in model.named_parameters() if ".indexer." in name)
    total = sum(p.numel() for p in model.parameters())
    assert (own > 0) == (attention["kind"] == "dsa")
    run = {"params": total, "indexer_params": own, **flatten(spec.model_dump())}
    experts = [p.numel() for name, p in model.named_parameters() if name.endswith(("_EDF", "_EFD"))]
    assert active_parameters(pd.DataFrame([run]))[0] == total - own - sum(experts) / 2


def test_the_known_slope_and_curves_are_found(found: Comparison) -> None:
    (ladder,) = found.sizes
    assert (ladder.length, ladder.variant) == (1024, "dsa")
    assert [point.size for point in ladder.points] == [active(*shape) for shape in SHAPES]
    assert ladder.slope is not None
    assert ladder.slope.low < GROWS < ladder.slope.high
    assert ladder.slope.slope == pytest.approx(GROWS, abs=0.001)
    dense, dsa = ladder.curves
    assert (dense.variant, dsa.variant) == ("", "dsa")
    assert dense.c_low < 0.2 < dense.c_high
    assert dense.a_low < 1.6 < dense.a_high
    assert "yes, the larger the worse beside dense" in said(found)


def test_at_equal_flops_a_cheaper_variant_is_the_larger_model(found: Comparison) -> None:
    """Against dense's own curve at these FLOPs, which lies above that of its size's dense run."""
    (ladder,) = found.sizes
    first, *others = ladder.points
    assert first.same_flops.n == 0, "below the smallest dense model: nothing is extrapolated"
    for point in others:
        assert point.flops == pytest.approx(0.9 * point.baseline_flops)
        assert point.same_flops_size == pytest.approx(0.9 * point.size, rel=0.001)
        true = 0.01 + GROWS * (np.log10(point.size) - 6)
        true += 0.5 * (point.baseline_flops / 8e15) ** -0.2 - 0.5 * (point.flops / 8e15) ** -0.2
        assert point.same_flops.mean == pytest.approx(true, abs=0.0015)
        assert point.same_flops.mean < point.difference.mean - 0.003
    assert "At equal FLOPs a larger DSA against dense" in said(found)


def test_the_bend_between_sizes_counts(tmp_path: Path) -> None:
    """Of a steep curve a straight line between two sizes would say 0.05 nats too much for dense."""
    found = of(tmp_path, curve=(1.0, 0.3, 0.7), cheaper=0.5, noise=0.0)
    for point in found.sizes[0].points[1:]:
        true = 0.3 * ((point.baseline_flops / 8e15) ** -0.7 - (point.flops / 8e15) ** -0.7)
        assert point.same_flops.mean == pytest.approx(true, abs=0.001)


def test_no_slope_is_said_to_be_open(tmp_path: Path) -> None:
    found = of(tmp_path, noise=0.003)
    assert found.sizes[0].slope is not None
    assert found.sizes[0].slope.low < 0 < found.sizes[0].slope.high
    assert "not settled, the interval of the slope holds 0" in said(found)


def test_points_that_cannot_tell_a_from_c_are_said_to(tmp_path: Path) -> None:
    found = of(tmp_path, curve=(1.6, 0.5, 0.05), noise=0.01)
    assert "5 sizes do not tell a from c: anything from c = " in said(found)


@pytest.mark.parametrize(
    ("curve", "words"), [((3.0, -0.1, 0.3), "does not fall with FLOPs"), ((3.0, 0.01, 4.0), "flat above the")]
)
def test_a_curve_that_fits_nothing_is_a_failure_that_is_said(
    tmp_path: Path, curve: tuple[float, float, float], words: str
) -> None:
    found = of(tmp_path, curve=curve, noise=0.0005)
    assert all(each.failed for each in found.sizes[0].curves)
    assert all(
        row[1] == "failed" for grid, _ in size_grids(found) if grid.title.startswith("Curves") for row in grid.rows
    )
    assert words in said(found)


def test_two_seeds_have_no_slope_and_three_sizes_no_curve(tmp_path: Path) -> None:
    two = of(tmp_path / "two", seeds=(1, 2))
    assert two.sizes[0].slope is None and not two.sizes[0].curves
    assert "needs 3 seeds at each of 3 sizes" in said(two)
    three = of(tmp_path / "three", shapes=SHAPES[:3])
    assert three.sizes[0].slope is not None and not three.sizes[0].curves
    assert of(tmp_path / "pair", shapes=SHAPES[:2]).sizes == []


def test_each_length_and_variant_has_its_own(tmp_path: Path) -> None:
    attentions = [{"kind": "dense"}, {"kind": "sliding_window", "top_k": 64}, {"kind": "dsa", "top_k": 64}]
    found = of(tmp_path, attentions=attentions, lengths=(512, 1024), shapes=SHAPES[:4])
    kinds = [(ladder.length, ladder.variant) for ladder in found.sizes]
    assert kinds == [(512, "dsa"), (512, "sliding_window"), (1024, "dsa"), (1024, "sliding_window")]
    titles = [grid.title for grid, _ in size_grids(found)]
    assert sum("512 tokens" in title for title in titles) == 2


def test_what_is_no_ladder_of_sizes_is_none(tmp_path: Path) -> None:
    synthetic.experiment(tmp_path / "plain", seeds=(1, 2, 3))
    assert compare(look_at(tmp_path / "plain")).sizes == []
    assert of(tmp_path / "leak", leak=True).sizes == [], "a leak is never judged"


@pytest.mark.parametrize(("name", "value"), [("unigram_loss", 6.85), ("vocab_size", 4096)])
def test_other_text_makes_no_ladder(tmp_path: Path, name: str, value: float) -> None:
    store = tmp_path / "runs"
    sizes(store, gap=lambda x: 0.0)
    for path in store.glob("*/run.json"):
        record = RunRecord.model_validate_json(path.read_bytes())
        if record.spec["model"]["d_model"] == 192:
            summary = {**record.summary, name: value}
            path.write_bytes(record.model_copy(update={"summary": summary}).to_json())
            evaluations = path.with_name("metrics.jsonl")
            evaluations.write_text(
                evaluations.read_text().replace('"unigram_loss": 6.75', f'"unigram_loss": {summary["unigram_loss"]}')
            )
    found = compare(look_at(store))
    assert len(found.tables) == len(SHAPES) and not found.sizes


def test_another_metric_has_a_slope_and_no_curve(store: Path) -> None:
    found = compare(look_at(store), metric="val_accuracy")
    assert found.sizes[0].slope is not None
    assert not found.sizes[0].curves
    assert all(point.same_flops.n == 0 for point in found.sizes[0].points)


def test_tables_fit_80_columns_and_every_form_has_them(shell: Shell, store: Path, found: Comparison) -> None:
    for grid, _ in size_grids(found):
        cells = [heading.split("\n") for heading in grid.headings]
        widths = [
            max(*(len(part) for part in parts), *(len(row[i]) for row in grid.rows)) for i, parts in enumerate(cells)
        ]
        assert sum(widths) + len(widths) - 1 <= 80
        assert len(grid.title) <= 80
    code, out, err = shell("compare", "--store", str(store))
    assert (code, err) == (0, "")
    assert "Models of several sizes (active parameters)" in out
    assert "Curves: loss = a + b (C / C0)^-c" in out
    text = as_markdown(found)
    assert "Does the gap grow with size?" in text
    assert any(line.startswith("Training tokens: 39M at every size") for line in notes(found))
    code, out, _ = shell("compare", "--store", str(store), "--json")
    document = json.loads(out)
    assert Comparison.model_validate(document).sizes[0].slope == found.sizes[0].slope


@pytest.mark.parametrize(
    ("parameters", "name"), [(2.76e6, "2.8M"), (1.05e8, "105M"), (83_000, "83K"), (1.2e9, "1.2B"), (12, "12")]
)
def test_names_of_sizes(parameters: float, name: str) -> None:
    assert size_name(parameters) == name
