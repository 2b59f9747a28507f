"""Odd values in one record: that run alone is unreadable, with field and value named, and every reader goes on."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import experiment

import dsabench
from dsabench.cli import app
from dsabench.errors import DsabenchError
from dsabench.metrics import METRICS
from dsabench.store import load_curves, load_lists, load_metrics, load_runs, read_run, readable_sweeps
from dsabench.store.seals import record_digest

SWEEP = "synthetic-00000000"
RECORDED = Path(__file__).parents[1] / "recorded_store" / "store"
NAN, INF, LARGE = math.nan, math.inf, 10**400

NO_COUNT = (0, -3, 1.5, True, 2**53 + 1, 2**63, LARGE, NAN, INF, "x", [], {})
NO_NUMBER = (True, "x", [], {}, NAN, INF, -INF)
REFUSED: dict[str, tuple[Any, ...]] = {
    "spec.length": (*NO_COUNT, 1, None),
    "spec.seed": (-1, 2**32, *NO_COUNT[2:]),
    "spec.train": (5, [], "x"),
    "spec.train.steps": NO_COUNT,
    "spec.train.tokens_per_step": NO_COUNT,
    "spec.train.batch_size": NO_COUNT,
    "spec.train.learning_rate": (0, -1e-3, 11, LARGE, *NO_NUMBER),
    "spec.train.warmup_steps": (-1, *NO_COUNT[2:]),
    "spec.train.weight_decay": (-1, *NO_NUMBER),
    "spec.attention.top_k": NO_COUNT,
    "spec.attention.top_k_ratio": (0, -0.5, 7, *NO_NUMBER),
    "spec.attention.indexer": (5, []),
    "spec.attention.indexer.n_heads": NO_COUNT,
    "spec.attention.indexer.warmup_share": (-0.1, 1, *NO_NUMBER),
    "spec.data.val_share": (0, 1, 7, -1, *NO_NUMBER),
    "spec.data.vocab_size": (1, *NO_COUNT),
    "spec.data.source": (5, None, True, []),
    "spec.data.task": (5, [], "x", True),
    "spec.model.d_model": NO_COUNT,
    "spec.allow_leak": (1, "x", None),
    "spec.plugins": (5, [1], {}),
    "summary.steps": NO_COUNT,
    "summary.params": NO_COUNT,
    "summary.vocab_size": NO_COUNT[:-2],
    "summary.val_loss": (-1, -1e308, 1e308, -INF, LARGE, True, "x"),
    "summary.val_accuracy": (-1, 7, INF, True, "x"),
    "summary.mass_recall": (-1, 1.1, INF, True),
    "summary.step_ms": (-1e-3, NAN, INF, 1e308, True),
    "summary.peak_memory_mb": (-1, NAN, INF, True),
    "summary.train_seconds": (-1, NAN, INF, True, "x"),
    "created": (0, True, 1e300, NAN, "1969-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00", "10000-01-01T00:00:00Z"),
    "updated": (-5, "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00"),
    "order": (-1, True, 2**62 + 1, 1.5, NAN, LARGE),
    "schema_version": (0, -1, True, 1.5),
    "metrics.step": (-1, 2**53 + 1, LARGE, True, 1.5, NAN, None),
    "metrics.val_loss": (-1, -INF, 1e308, LARGE),
    "metrics.val_accuracy": (7, -1, INF),
    "metrics.seconds": (-1, NAN, INF),
    "metrics.flops": (-1, NAN, INF, 10**60),
    "sweep.run_ids": ([], ["../x"], [""], [1], {}, 5),
    "sweep.rungs": ({"a": []}, {"a": ["gone"]}, {"a": 5}, {"a": [1]}, [], 5),
    "sweep.updated": (0, "1969-12-31T23:59:59+00:00"),
    "sweep.order": (-1, True, LARGE),
}
"""Field -> values that no run has."""

KEPT: dict[str, tuple[Any, ...]] = {
    "summary.val_loss": (NAN, INF, 0.0, None),
    "summary.train_loss": (NAN, INF),
    "summary.mass_recall": (NAN, 1.0 + 1e-3, 0, None),
    "summary.val_kl": (NAN, INF, -1e-3),
    "summary.step_ms": (None, 0, 1e9),
    "summary.flops": (0, 1e30),
    "summary.of_another_version": (NAN, -5, True, 2**70, "x"),
    "spec.of_another_version": (NAN, -5, True, 2**70, LARGE, "x", [], {"steps": 0}),
    "spec.train.schedule": ("a later one",),
    "spec.attention.top_k": (1, 10**9),
    "spec.attention.kind": ("mine",),
    "spec.train": ({},),
    "environment.threads": (0, -1, NAN, INF, True, 2**70, LARGE, [], {}, "x"),
    "environment.device_name": (0, NAN, True, LARGE, [], {}),
    "created": ("9999-12-31T23:59:59+00:00",),
    "updated": ("9999-12-31T23:59:59+00:00", "1970-01-01T00:00:00+00:00"),
    "order": (0, 2**62, None),
    "metrics.val_loss": (NAN, INF, 0, None, "x", True, [], {}),
    "metrics.mass_recall": (NAN, 0, None),
    "metrics.of_another_version": (NAN, -INF, -1, 2**70, LARGE, True, "x", [NAN], {}),
    "metrics.loss_by_position": ([], [NAN], [-1, INF], [LARGE], [True], ["x"], 5, {}, [[1]]),
    "metrics.stage": (0, True, "x", None, []),
    "metrics.kind": ("x",),
    "sweep.spec": ({}, {"verdict": 5}, {"verdict": {"margin": 0}}, {"verdict": {"margin": INF}}, {"base": LARGE}),
    "sweep.rungs": ({},),
}
"""Field -> values that are odd, and read: training that diverges records them, or another version may."""

PLACES = [(field, value) for fields in (REFUSED, KEPT) for field, values in fields.items() for value in values]


class Store:
    """A store of four pairs, one run of which gets odd values."""

    def __init__(self, folder: Path) -> None:
        self.good, self.path, self.out = folder / "good", folder / "runs", folder / "out"
        ids = experiment(self.good, lengths=(16,), seeds=(1, 2, 3, 4), evaluations=2)
        self.victim, self.partner = ids[-1], ids[-2]
        load_runs(self.good)

    def plant(self, values: list[tuple[str, Any]]) -> None:
        """The store anew, with these values in one run's files or in the sweep's record."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.good, self.path)
        folder = self.path / self.victim
        for field, value in values:
            first, *rest = field.split(".")
            path = self.path / "sweeps" / f"{SWEEP}.json" if first == "sweep" else folder / "run.json"
            if first == "metrics":
                path = folder / "metrics.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()] if first == "metrics" else []
            document = inner = lines[-1] if lines else json.loads(path.read_text())
            names = rest if first in ("sweep", "metrics") else [first, *rest]
            for name in names[:-1]:
                inner = inner[name] if isinstance(inner.get(name), dict) else inner.setdefault(name, {})
                assert isinstance(inner, dict)
            inner[names[-1]] = value
            if first != "metrics":  # sealed as it is: the seal alone does not tell
                document["seal"] = {**document["seal"], "digest": record_digest(document)}
            path.write_text("".join(json.dumps(line) + "\n" for line in lines or [document]))

    def without(self) -> Path:
        """The store without that run."""
        path = self.path.with_name("without")
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.good, path, ignore=shutil.ignore_patterns(self.victim))
        return path

    def problem(self) -> str:
        """What is wrong with the run's files, or with the sweep's record, or "" where nothing is."""
        try:
            read_run(self.path, self.victim)
        except DsabenchError as error:
            return str(error)
        return " ".join([*load_curves(self.path).damaged.values(), *readable_sweeps(self.path)[1]])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("odd"))


def shown(*words: str) -> tuple[int, str]:
    """Exit code and output of a command in this process; a traceback is an exception, and a warning too."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["dsabench", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("error")
            app.main()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    finally:
        sys.argv = argv
    return 0, out.getvalue()


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_that_no_run_has_is_refused_and_named(store: Store, field: str) -> None:
    for value in REFUSED[field]:
        store.plant([(field, value)])
        problem = store.problem()
        assert "damaged" in problem, (field, value)
        assert field.removeprefix("metrics.").removeprefix("sweep.").removeprefix("summary.").split(".")[-1] in problem
        if isinstance(value, float | str) and field.split(".")[0] in ("spec", "summary"):
            assert repr(value) in problem, "the value is named"
        runs = load_runs(store.path).set_index("run_id")
        if not field.startswith(("metrics", "sweep")):
            assert runs.status.drop(store.victim).eq("done").all()
            assert runs.status[store.victim] == "unreadable" and runs.error[store.victim] == problem


@pytest.mark.parametrize("field", KEPT)
def test_what_training_or_another_version_records_stays_readable(store: Store, field: str) -> None:
    for value in KEPT[field]:
        store.plant([(field, value)])
        assert store.problem() == "", (field, value)


@pytest.mark.parametrize(
    ("field", "value"), [("spec.length", 0), ("spec.train.steps", LARGE), ("summary.val_loss", -1)]
)
def test_the_rest_of_a_store_is_judged_as_without_the_odd_run(store: Store, field: str, value: Any) -> None:
    store.plant([(field, value)])
    without = store.without()
    for options in ([], ["--all"]):
        code, odd = shown("compare", *options, "--json", "--store", str(store.path))
        assert code == 0
        _, clean = shown("compare", *options, "--json", "--store", str(without))
        assert json.loads(odd)["tables"] == json.loads(clean)["tables"]
    code, listed = shown("runs", "--store", str(store.path))
    assert code == 0 and "unreadable" in listed


def commands(store: Store) -> list[list[str]]:
    run, out = store.victim, ["--out", str(store.out)]
    found = [
        *(["runs"], ["runs", "--json"], ["runs", "show", run], ["runs", "show", run, "--json"]),
        *(["runs", "diff", run, store.partner], ["runs", "export", str(store.out / "runs.csv")]),
        *(["compare"], ["compare", "--json"], ["compare", "--csv"], ["compare", "--all", "--metric", "step_ms"]),
        *(["plot", *out], ["report", *out], ["visualize-selection", "--run", run, *out]),
        ["export", "--to", "tensorboard", *out],
    ]
    if store.problem():  # one that is read would be trained, timed or audited
        found += [["bench", "--run", run], ["audit", run], ["reproduce", run]]
    return [[*words, "--store", str(store.path)] for words in found]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(PLACES), min_size=1, max_size=4, unique_by=lambda place: place[0]),
    st.lists(st.integers(0, 16), min_size=2, max_size=2),
)
def test_no_command_ends_in_a_traceback(store: Store, values: list[tuple[str, Any]], chosen: list[int]) -> None:
    store.plant(sorted(values, key=lambda place: place[0], reverse=True))  # the inner ones first
    store.out.mkdir(exist_ok=True)
    for read in (load_runs, load_metrics, load_lists, load_curves, dsabench.compare):
        with contextlib.suppress(DsabenchError):
            read(store.path)
    known = commands(store)
    for words in [known[i % len(known)] for i in chosen]:
        code, _ = shown(*words)
        assert code in (0, 1, 2, 3), words


def test_the_recorded_store_has_no_odd_value(tmp_path: Path) -> None:
    store = shutil.copytree(RECORDED, tmp_path / "runs")
    assert "unreadable" not in set(load_runs(store).status)
    assert load_curves(store).damaged == {} and readable_sweeps(store)[1] == []


@given(st.sampled_from(sorted(METRICS)), st.floats())
def test_a_metric_has_its_range_and_no_more(name: str, value: float) -> None:
    metric = METRICS[name]
    if math.isnan(value):
        assert metric.has(value) != metric.finite
    elif metric.least <= value <= min(metric.most, 1e38):
        assert metric.has(value)
    elif value < metric.least - 0.1 or value > metric.most + 0.1:
        assert not metric.has(value)
