"""`dsabench.sweep` and `dsabench.compare` do what the commands do, and the notebook of configs/ runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pandas as pd
import pytest
import torch
from shell import Shell

import dsabench
from dsabench.engine.step import TrainStep
from dsabench.errors import DsabenchError, ScopeError, SpecError
from dsabench.spec.config import load_sweep

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES: dict[str, Any] = {
    "model.d_model": 16, "model.n_layers": 2, "model.n_heads": 2, "model.d_ff": 16, "model.n_experts": 2,
    "model.experts_per_token": 1, "attention.indexer.n_heads": 2, "attention.indexer.head_dim": 8,
    "data.vocab_size": 300, "data.max_documents": 8, "train.steps": 4, "train.tokens_per_step": 256,
    "train.warmup_steps": 1, "train.eval_every": 2, "train.eval_tokens": 1024, "engine.device": "cpu",
}  # fmt: skip
"""`quick` in a second."""

SMALL: dict[str, Any] = {"axes": {"length": [16, 32], "seed": [1, 2, 3]}, "overrides": SIZES}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A store, and what `sweep` returned of it."""
    store = tmp_path_factory.mktemp("notebook") / "runs"
    return store, dsabench.sweep("quick", **SMALL, store=store, margin=0.05, progress=False)


def test_a_sweep_chooses_each_ones_settings_first(tmp_path: Path) -> None:
    """Trained, not planted: the rows are the seeds at the best of the trials, and `compare` pairs them."""
    rate = "train.learning_rate"
    tune = {"trials": 2, "steps": 2, "sampler": "grid", "over": {rate: [1e-3, 1e-2]}}
    axes = {"length": [16], "seed": [1, 2, 3]}
    runs = dsabench.sweep("quick", axes=axes, overrides=SIZES, tune=tune, store=tmp_path, progress=False)
    assert list(runs["status"]) == ["done"] * 6 and list(runs["seed"]) == [1, 2, 3] * 2
    stored = dsabench.load_runs(tmp_path)
    trials = stored[stored["seed"] == 1000]
    assert len(stored) == 6 + 4 and set(trials["steps"]) == {2}
    best = trials.sort_values("val_loss").drop_duplicates("attention").set_index("attention")[rate]
    assert {(kind, value) for kind, value in zip(runs["attention"], runs[rate], strict=True)} == set(best.items())
    found = dsabench.compare(tmp_path).comparison
    assert [row.difference.n for row in found.rows] == [3]
    assert [one.variant_settings for one in found.best_rates] == [{rate: best["dsa"]}]
    again = dsabench.sweep("quick", axes=axes, overrides=SIZES, tune=tune, store=tmp_path, progress=False)
    assert list(again["run_id"]) == list(runs["run_id"]) and again.attrs == runs.attrs


def test_dir_shows_the_public_names_and_loads_nothing() -> None:
    code = (
        "import dsabench, sys\n"
        "assert set(dir(dsabench)) == set(dsabench.__all__) >= {'sweep', 'compare', 'load_lists', 'train'}\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'matplotlib', 'scipy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(getattr(dsabench, name) is not None for name in dir(dsabench))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_comparing_loads_no_torch(trained: tuple[Path, pd.DataFrame]) -> None:
    code = f"import dsabench, sys; str(dsabench.compare({str(trained[0])!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_a_sweep_is_that_of_the_command(trained: tuple[Path, pd.DataFrame], shell: Shell) -> None:
    """The same runs in the same order with the same numbers, and the same sweep with the same margin."""
    store, runs = trained
    sets = [word for path, value in SIZES.items() for word in ("--set", f"{path}={value}")]
    words = ["--lengths", "16", "32", "--seeds", "1", "2", "3", "--margin", "0.05", *sets]
    code, out, err = shell("sweep", "--config", "quick", *words, "--dry-run", "--json")
    assert code == 0, err
    assert runs["run_id"].tolist() == [run["run_id"] for run in json.loads(out)["runs"]]
    assert runs["status"].tolist() == ["done"] * 12
    code, out, err = shell("sweep", "--config", "quick", *words, "--quiet")
    assert code == 0, err
    theirs = dsabench.load_runs("runs").set_index("run_id")
    assert runs.set_index("run_id")["val_loss"].to_dict() == theirs["val_loss"].to_dict()
    (mine,), (its,) = ([path.stem for path in Path(place).glob("sweeps/*.json")] for place in (store, "runs"))
    assert runs.attrs["sweep"] == mine == its
    assert dsabench.compare(store).comparison.margin == dsabench.compare("runs").comparison.margin == 0.05


def test_what_is_done_is_not_trained_again(
    trained: tuple[Path, pd.DataFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    """Also from a loaded config, which stays as it was."""
    store, runs = trained
    times = {path: path.stat().st_mtime_ns for path in store.glob("*/metrics.jsonl")}
    config = load_sweep("quick")
    before = config.plain()
    again = dsabench.sweep(config, **SMALL, store=store, margin=0.05, progress=False)
    pd.testing.assert_frame_equal(again, runs)
    assert config.plain() == before
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/metrics.jsonl")} == times
    assert capfd.readouterr() == ("", "")


def test_the_random_state_of_the_caller_stays(tmp_path: Path) -> None:
    axes = {"attention.kind": ["dsa"], "length": [16], "seed": [1]}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dsabench.sweep("quick", axes=axes, overrides=SIZES, store=tmp_path / "runs", progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_that_fails_is_a_row_that_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And progress is shown on stderr, a line a run where there is no terminal."""
    honest, begun = TrainStep.run, []

    def failing(self: TrainStep, first: int, *rest: Any) -> Any:
        begun.extend([first] * (first == 0))
        if len(begun) == 2:
            raise RuntimeError("a cable was pulled")
        return honest(self, first, *rest)

    monkeypatch.setattr(TrainStep, "run", failing)
    axes = {"attention.kind": ["dense"], "length": (16,), "seed": range(1, 4)}
    runs = dsabench.sweep("quick", axes=axes, overrides=SIZES, store=tmp_path / "runs")
    assert runs["seed"].tolist() == [1, 2, 3]
    assert runs["status"].tolist() == ["done", "failed", "done"]
    assert "a cable was pulled" in runs["error"][1] and runs["error"].isna().tolist() == [True, False, True]
    out, err = capfd.readouterr()
    assert out == ""
    assert all(run_id in err for run_id in runs["run_id"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"axes": {"lengths": [64]}}, "axes: unknown field lengths"),
        ({"axes": {"length": 64}}, r"axes: axes.length = 64 is not accepted; accepted: a list"),
        ({"overrides": {"train.step": 4}}, "overrides: unknown field train.step"),
        ({"margin": -1.0}, "margin: "),
        ({"concurrency": 3}, "concurrency = 3: "),
        ({"config": "quik"}, "no config named 'quik'"),
    ],
)
def test_bad_input_is_said_before_anything_is_written(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        dsabench.sweep(**({"config": "quick", "store": tmp_path / "runs", "progress": False} | given))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [{}, {"metric": "val_accuracy"}, {"where": "length == 16"}, {"margin": 0.5}, {"everything": True}]
)
def test_a_comparison_is_that_of_the_command(
    words: dict[str, Any], trained: tuple[Path, pd.DataFrame], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    store = trained[0]
    flags = [word for name, value in words.items() if name != "everything" for word in (f"--{name}", str(value))]
    flags += ["--all"] if "everything" in words else []
    found = dsabench.compare(store, **words)
    printed = {form: shell("compare", "--store", store, *flags, *form) for form in ((), ("--json",), ("--csv",))}
    assert all(code == 0 for code, _, _ in printed.values()), printed
    assert str(found) == repr(found) == printed[()][1].rstrip()
    assert found.document == json.loads(printed["--json",][1])
    assert json.loads(json.dumps(found.document, allow_nan=False)) == found.document
    csv = pd.read_csv(io.StringIO(printed["--csv",][1]), keep_default_na=False, na_values=[""])
    assert list(found.frame) == list(csv)
    for name in csv:
        ours, theirs = found.frame[name], csv[name]
        if ours.dtype == "float64":
            assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-12, nan_ok=True)
        else:
            assert ours.replace("", pd.NA).isna().equals(theirs.isna())
            assert (ours.astype("string") == theirs.astype(ours.dtype).astype("string")).dropna().all(), name
    assert found.frame["verdict"].tolist() == [row.verdict for row in found.comparison.rows]
    shown = found._repr_html_()
    assert shown.startswith("<pre") and "[95 % CI]" in shown


def test_a_comparison_that_cannot_be_is_said(trained: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    for words in ({"margin": 0.0}, {"margin": float("nan")}, {"sweep": "nothing"}, {"metric": "loss"}):
        with pytest.raises(ScopeError):
            dsabench.compare(trained[0], **words)  # type: ignore[arg-type]
    with pytest.raises(DsabenchError):
        dsabench.compare(tmp_path / "nowhere")


def test_text_of_a_store_is_no_markup_in_a_notebook(trained: tuple[Path, pd.DataFrame]) -> None:
    found = dsabench.compare(trained[0])
    hostile = found.comparison.model_copy(update={"scope": "<script>alert(1)</script>"})
    shown = type(found)(hostile)._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_of_the_configs_runs(path: Path, tmp_path: Path) -> None:
    """With smaller models; it is stored without results."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (settings,) = [cell for cell in code if "settings" in cell.metadata.get("tags", [])]
    settings.source += f"\noverrides |= {SIZES!r}\naxes |= {SMALL['axes']!r}\n"
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [output for cell in code for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    data = [output.data for output in shown if "data" in output]
    assert sum("image/png" in item for item in data) >= 2, "its plots"
    assert any("[95 % CI]" in item.get("text/html", "") for item in data), "the comparison"
    assert (tmp_path / "runs/index.parquet").exists()
