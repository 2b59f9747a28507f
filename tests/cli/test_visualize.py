"""`visualize-selection` as a user meets it: what it prints and writes, and one clear message where it cannot."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import resealed

from dsabench import inspect_selection, load_spec, train
from dsabench.cli import app
from dsabench.data.sources.readers import read_text
from dsabench.engine import loop

pytestmark = pytest.mark.usefixtures("blank_maps")

Run = Callable[..., tuple[int, str, str]]

PLUGIN = """
from typing import Literal

import torch

from dsabench.attention.base import Attention, AttentionOutput, Selection, capture_mass
from dsabench.attention.dsa import masked
from dsabench.attention.registry import register
from dsabench.spec.attention import AttentionSpec


class NearSpec(AttentionSpec):
    kind: Literal["near"] = "near"


@register
class Near(Attention):
    spec_class = NearSpec

    def forward(self, x_BTD, context):
        q, k, v = self.projections.heads(x_BTD, context)
        near = torch.arange(x_BTD.shape[1])[:, None] - torch.arange(5)
        if context.capture is not None and self.layer == 0:
            context.capture[0] = Selection(near.clamp(min=-1).expand(len(x_BTD), -1, -1), capture_mass(q, k, context))
        return AttentionOutput(self.projections.merge(masked.attention(q, k, v, context.allowed)[0]))

    def flops(self, stage):
        return {"attention": 1.0}
"""


def fields(corpus: Path, **more: Any) -> dict[str, Any]:
    return {
        "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 16, "model.n_layers": 2, "length": 32, "seed": 1,
        "train.steps": 6, "train.warmup_steps": 2, "train.eval_every": 6, "train.tokens_per_step": 64,
        "train.eval_tokens": 64, "data.vocab_size": 300, "data.val_share": 0.25, "data.source": f"path:{corpus}",
        "engine.device": "cpu", **more,
    }  # fmt: skip


DSA = {"attention.kind": "dsa", "attention.indexer.head_dim": 8}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of three runs: dsa with k = 8 of 32, dense, and dsa that keeps all 32 (the newest)."""
    folder = tmp_path_factory.mktemp("trained")
    for more in ({**DSA, "attention.top_k": 8}, {"attention.kind": "dense"}, {**DSA, "attention.top_k": 32}):
        train(load_spec("quick", fields(corpus, **more)), folder / "runs")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, for a test alone, in the working folder."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("DSABENCH_DEBUG", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dsabench", "visualize-selection", *words])
        with pytest.raises(SystemExit) as caught:
            app.main()
        out = capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    return call


def runs_of(folder: Path) -> dict[str, str]:
    """Run ids by attention and k."""
    found = {}
    for path in (folder / "runs").glob("*/run.json"):
        attention = json.loads(path.read_text())["spec"]["attention"]
        found[f"{attention['kind']} {attention.get('top_k')}".removesuffix(" None")] = path.parent.name
    return found


def test_every_window_has_files_of_its_own(here: Path, run: Run) -> None:
    chosen = runs_of(here)["dsa 8"]
    asked = [(), ("--text", "one text " * 9), ("--text", "another text " * 9), ("--document", "0"), ("--start", "3")]
    for words in asked:
        code, _, err = run(chosen, *words)
        assert code == 0, err
    stems = sorted(path.stem for path in Path("results").glob("*.png"))
    assert sorted(path.stem for path in Path("results").glob("*.html")) == stems
    assert len(stems) == len(asked) and f"selection_{chosen}" in stems
    assert {f"selection_{chosen}_document-0", f"selection_{chosen}_start-3"} < set(stems)


def test_without_an_argument_the_newest_run_that_selects_is_shown(here: Path, run: Run) -> None:
    chosen = runs_of(here)["dsa 8"]
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.startswith(f"{chosen}: k = 8 of 32 tokens, validation document 0 (")
    for kind in ("png", "html"):
        path = Path(f"results/selection_{chosen}.{kind}")
        assert f"Written: {path}" in out
        assert path.stat().st_size > {"png": 100, "html": 10_000}[kind]
    assert re.search(r"^mean +0\.\d\d", out, re.M)
    assert re.search(r"^rand\. +0\.\d\d", out, re.M)
    assert "<<" in out
    assert out.count("|3]") + out.count("|2]") + out.count("|1]") >= 8  # the legend's one among them
    before = {path.name: path.read_bytes() for path in Path("results").iterdir()}
    assert run()[1] == out
    assert {path.name: path.read_bytes() for path in Path("results").iterdir()} == before


def test_json_is_one_document_with_every_number_and_its_chance(here: Path, run: Run) -> None:
    code, out, err = run("--json", "--export", "made/keys.parquet", "--layers", "1", "--document", "1", "--start", "3")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["stage"] == "sparse"
    assert (found["trained_length"], found["tokens"], found["step"]) == (32, 32, 6)
    assert found["source"].startswith("validation document 1 (")
    (layer,) = found["layers"]
    assert layer["layer"] == 1
    for name in ("mass_recall", "oracle_overlap", "nearest_kept", "first_kept", "previous_kept", "never_selected"):
        assert {name, f"{name}_chance"} <= layer.keys()
    assert found["files"][-1] == "made/keys.parquet"
    assert all(Path(path).is_file() for path in found["files"])
    seen = inspect_selection("runs", runs_of(here)["dsa 8"], document=1, start=3)
    assert layer["mass_recall"] == seen.numbers["layers"][1]["mass_recall"]


def test_the_export_is_the_selection_and_adds_up_to_the_recall(here: Path, run: Run) -> None:
    assert run("--export", "keys.parquet", "--quiet")[0] == 0
    keys = pd.read_parquet("keys.parquet")
    assert list(keys.columns) == ["layer", "query", "rank", "key", "score", "attention_mass"]
    assert len(keys) == 2 * (8 * 9 // 2 + 24 * 8)
    assert (keys["key"] <= keys["query"]).all()
    assert (keys["key"] >= 0).all()
    for _, one in keys.groupby(["layer", "query"]):
        assert one["rank"].tolist() == list(range(len(one)))
        assert (np.diff(one["score"]) <= 0).all()
    recall = keys[keys["query"] >= 8].groupby(["layer", "query"])["attention_mass"].sum().mean()
    assert recall == pytest.approx(inspect_selection("runs").numbers["mean"]["mass_recall"], abs=1e-6)


def test_a_text_of_ones_own_is_escaped_everywhere(here: Path, run: Run) -> None:
    evil = "<script>alert(1)</script> \x1b[31mred \u202e caf\u00e9"
    code, out, err = run("--text", evil, "--query", "20", "--layer", "0")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert "Layer 0, query 20" in out
    page = next(Path("results").glob("*.html")).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page


def test_a_text_longer_or_shorter_than_the_model_was_trained_at_is_said(here: Path, run: Run) -> None:
    Path("long.txt").write_text("abcd efgh " * 200, encoding="utf-8")
    code, _, err = run("--text-file", "long.txt", "--start", "5")
    assert code == 0
    assert re.search(r"note: the text has \d+ tokens and the model was trained at 32: shown are tokens 5 to 36", err)
    code, out, err = run("--text", "zzzz")
    assert code == 0
    assert "note: the window has 4 tokens; the model was trained at 32" in err
    assert "everything is selected" in err
    assert "4 of 4 keys selected" in out


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_text_file_is_read_as_training_reads_it(here: Path, run: Run, ends: str, mark: str) -> None:
    text = f"caf\u00e9 1{ends}2{ends}{ends}3 \ufeff 4"
    Path("own.txt").write_bytes((mark + text).encode())
    code, out, err = run("--text-file", "own.txt", "--json", "--quiet")
    assert code == 0, err
    trained_on = "".join(part for document in read_text(Path("own.txt")) for part in document.parts)
    assert trained_on == text
    assert json.loads(out)["tokens"] == len(text.encode()), "the run's tokens are bytes"


def test_k_of_everything_is_said_and_drawn(here: Path, run: Run) -> None:
    code, out, err = run(runs_of(here)["dsa 32"])
    assert code == 0
    assert "note: k is not below the 32 tokens in every layer: everything is selected" in err
    assert "32 of 32 keys selected" in out
    assert len(list(Path("results").iterdir())) == 2
    code, out, _ = run(runs_of(here)["dsa 32"], "--json", "--quiet")
    assert json.loads(out)["mean"]["mass_recall"] is None


MISTAKES: dict[str, tuple[list[str], str]] = {
    "dense": (["dense"], "does not select: its attention is dense; one that selects: dsa-L32-s1-"),
    "no such run": (["zigzag"], "no run starts with that"),
    "ambiguous": (["d"], "3 runs start with that"),
    "query": (["--query", "32"], "--query 32: the window has 32 tokens, 0 to 31"),
    "negative query": (["--query", "-1"], "--query -1"),
    "layer": (["--layer", "2"], "--layer 2: the layers shown are 0, 1"),
    "layer not among layers": (["--layers", "0", "--layer", "1"], "the layers shown are 0"),
    "layers": (["--layers", "0", "5"], "layer 5: the layers that select are 0, 1"),
    "document": (["--document", "3"], "validation document 3: there are 3 of them, 0 to 2"),
    "start": (
        ["--document", "1", "--start", "99999"],
        "no window of 32 starts at 99999; a window of 32 can start at 0",
    ),
    "empty text": (["--text", ""], "the text has 0 tokens; at least 2 are needed, and the model was trained at 32"),
    "start of a text": (["--text", "abcdefgh", "--start", "90"], "its window cannot start at token 90"),
    "two texts": (["--text", "a", "--text-file", "b"], "--text and --text-file replace each other"),
    "text and document": (["--text", "abcd", "--document", "1"], "replace each other"),
    "no such file": (["--text-file", "nowhere.txt"], "--text-file nowhere.txt: cannot be read: No such file"),
    "not a text": (["--text-file", "binary"], "--text-file binary: not UTF-8 text: byte 0xff at offset 0"),
    "device": (["--device", "cuda"], "engine.device = cuda: there is no CUDA GPU here"),
    "out": (["--out", "runs/store.json"], "--out runs/store.json"),
    "no store": (["--store", "elsewhere"], "elsewhere: no run store there"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_exit_2(name: str, here: Path, run: Run) -> None:
    words, message = MISTAKES[name]
    Path("binary").write_bytes(b"\xff\xfe\x00")
    code, out, err = run(*words)
    assert code == 2, err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not Path("results").exists()


def test_an_empty_folder_says_what_to_do(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run()
    assert code == 2
    assert "no run store there; make runs first" in err
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_a_selecting_run_or_its_checkpoint_says_so(here: Path, run: Run) -> None:
    found = runs_of(here)
    shutil.rmtree(f"runs/{found['dsa 8']}/checkpoint")
    code, _, err = run()
    assert code == 2
    assert "1 finished run would select, but no checkpoint is there; train one with: dsabench train" in err
    code, _, err = run(found["dsa 8"])
    assert code == 2
    assert f"run {found['dsa 8']} (done) has no checkpoint" in err
    shutil.rmtree(f"runs/{found['dsa 8']}")
    code, _, err = run()
    assert code == 2
    assert "of 2 runs none is finished and selects (k < L); train one with: dsabench train --config quick" in err


def test_a_record_of_a_newer_schema_is_refused(here: Path, run: Run) -> None:
    path = Path(f"runs/{runs_of(here)['dsa 8']}/run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    code, _, err = run(path.parent.name)
    assert code == 2
    assert "written by a newer dsabench" in err


def test_a_corpus_that_is_gone_leaves_a_text_of_ones_own(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(f"runs/{runs_of(here)['dsa 8']}/run.json")
    record = json.loads(path.read_text())
    record["spec"]["data"]["source"] = "path:gone"
    resealed.write(path, record)
    code, _, err = run(path.parent.name)
    assert code == 2
    assert "gone" in err
    assert "--text needs only the run's tokenizer" in err
    assert run(path.parent.name, "--text", "abcd efgh ijkl abcd")[0] == 0
    monkeypatch.setenv("DSABENCH_CACHE", str(here / "cache"))
    code, _, err = run(path.parent.name, "--text", "abcd efgh")
    assert code == 2
    assert re.search(r"not in the cache \(.*\.json\), and what it was trained on cannot be read: .*gone", err)


def test_a_corpus_that_changed_is_not_taken_for_the_one_of_the_run(here: Path, run: Run, corpus: Path) -> None:
    shutil.copytree(corpus, here / "corpus")
    (here / "corpus/more.txt").write_text("other words " * 300, encoding="utf-8")
    path = Path(f"runs/{runs_of(here)['dsa 8']}/run.json")
    record = json.loads(path.read_text())
    record["spec"]["data"]["source"] = f"path:{here / 'corpus'}"
    resealed.write(path, record)
    code, _, err = run(path.parent.name)
    assert code == 2
    assert "has changed since run" in err


def test_an_interrupted_run_is_shown_at_its_checkpoint_and_its_stage_said(
    here: Path, run: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.checkpoint.save

    def killed(folder: Path, model: Any, optimizer: Any, progress: Any) -> None:
        honest(folder, model, optimizer, progress)
        monkeypatch.setattr(loop.checkpoint, "save", stop)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoint, "save", killed)
    slow = {**DSA, "attention.indexer.warmup_share": 0.9, "engine.checkpoint_every": 2, "attention.top_k": 5}
    with pytest.raises(KeyboardInterrupt):
        train(load_spec("quick", fields(corpus, **slow)), "runs")
    code, _, err = run(runs_of(here)["dsa 5"])
    assert code == 0, err
    assert "note: the run is interrupted: shown is its checkpoint at step 2 of 6" in err
    assert "dense warm-up stage (5 steps), in which attention is dense; shown is the sparse stage" in err


def test_a_plugin_that_captures_is_shown_and_one_without_scores_by_its_mass(here: Path, run: Run, corpus: Path) -> None:
    Path("near.py").write_text(PLUGIN)
    spec = load_spec("quick", fields(corpus, **{"plugins": ["near.py"], "attention.kind": "near"}))
    record = train(spec, "runs")
    code, out, err = run(record.run_id, "--json", "--export", "k.parquet")
    assert (code, err) == (0, "")
    (layer,) = json.loads(out)["layers"]
    assert (layer["k"], layer["nearest_kept"], layer["score_entropy"]) == (5, 1.0, None)
    assert pd.read_parquet("k.parquet")["score"].isna().all()
    code, out, _ = run(record.run_id)
    assert code == 0
    assert "k = 5 of 32 tokens" in out
    Path("near.py").write_text(PLUGIN.replace("self.layer == 0", "False"))
    code, _, err = run(record.run_id)
    assert code == 2
    assert "captures no selection" in err
    assert "one that selects: dsa-" in err


def test_a_newer_run_with_an_emptied_checkpoint_is_passed_over_and_that_is_said(
    here: Path, run: Run, corpus: Path
) -> None:
    older = runs_of(here)["dsa 8"]
    newer = train(load_spec("quick", fields(corpus, **DSA, **{"attention.top_k": 4})), "runs").run_id
    assert run()[1].startswith(f"{newer}: ")
    for path in Path(f"runs/{newer}/checkpoint").iterdir():
        path.unlink()
    code, out, err = run()
    assert code == 0
    assert out.startswith(f"{older}: ")
    assert "note: 1 newer run has no checkpoint any more: shown is the newest that has one" in err
    code, _, err = run(newer)
    assert code == 2
    assert f"run {newer} (done) has no checkpoint in runs" in err


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_checkpoint_that_lacks_a_file_is_one_message(here: Path, run: Run, name: str) -> None:
    chosen = runs_of(here)["dsa 8"]
    Path(f"runs/{chosen}/checkpoint/{name}").unlink()
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert name in err and chosen in err
