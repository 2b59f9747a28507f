"""`dsabench export --to transformers`: folders of models, what is refused and goes on, what is told. Needs no
transformers; tests/parity loads what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from shell import Shell
from single_runs import base, dense

import dsabench
from dsabench.model.transformers_folder import FILES
from dsabench.spec.run import validate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run and one of DSA, of two experts."""
    folder = tmp_path_factory.mktemp("models")
    corpus = folder / "texts"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"the cat sat on mat {number} and then some more " * 30)
    fields = base(corpus, steps=2, eval_every=2)
    fields["model"] = {**fields["model"], "experts_per_token": 2}
    for spec in (validate(fields), dense(validate(fields))):
        assert dsabench.train(spec, store=folder / "runs").status == "done"
    return folder / "runs"


@pytest.fixture
def ids(store: Path) -> dict[str, str]:
    runs = dsabench.load_runs(store)
    return dict(zip(runs["attention"], runs["run_id"], strict=True))


def test_a_dense_run_becomes_a_folder(shell: Shell, store: Path, ids: dict[str, str]) -> None:
    code, out, err = shell("export", "dense", "--to", "transformers", "--store", str(store))
    assert (code, err) == (0, f"{ids['dense']}  done\n")
    assert out == (
        "Written: results/transformers (1 run for transformers)\n"
        'To see them: transformers.AutoModelForCausalLM.from_pretrained("results/transformers/RUN") in Python\n'
    )
    folder = Path("results/transformers") / ids["dense"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["MixtralForCausalLM"]
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1, "who may read one of them may read all"


def test_a_run_without_a_class_is_told_and_the_others_go_on(shell: Shell, store: Path, ids: dict[str, str]) -> None:
    code, out, err = shell("export", "--all", "--to", "transformers", "--store", str(store), "--json", "--out", "here")
    assert code == 1
    found = json.loads(out)
    assert found["written"] == [ids["dense"]]
    assert list(found["failed"]) == [ids["dsa"]]
    assert found["failed"][ids["dsa"]].startswith("attention dsa has no class in transformers: ")
    assert f"error: {ids['dsa']}: attention dsa has no class" in err
    assert [path.name for path in Path("here").iterdir()] == [ids["dense"]]
    code, out, err = shell("export", "dsa", "--to", "transformers", "--store", str(store), "--out", "there")
    assert code == 1
    assert out == "Written: there (0 runs for transformers, 1 failed)\n"


def test_usage_errors(shell: Shell, store: Path) -> None:
    for words, told in (
        (["dense", "--follow"], "--follow is for trackers; transformers takes a model when it is trained"),
        (["dense", "--out", str(store / "models")], "inside the store"),
        (["none"], "none"),
    ):
        code, out, err = shell("export", *words, "--to", "transformers", "--store", str(store))
        assert (code, out) == (2, "")
        assert told in err


def test_a_run_without_a_checkpoint_is_told(shell: Shell, tmp_path: Path, store: Path, ids: dict[str, str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shutil.rmtree(copy / ids["dense"] / "checkpoint")
    code, _, err = shell("export", "dense", "--to", "transformers", "--store", str(copy))
    assert code == 1
    assert "has no checkpoint" in err
    assert not list(Path("results/transformers").iterdir())
