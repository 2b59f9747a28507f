"""`visualize-selection` of a run on a task: its windows are those of training, targets are marked and listed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import resealed
from shell import Shell

from dsabench import load_spec, train
from dsabench.cli.views.run_outcome import describe, print_run
from dsabench.data import TaskWindows
from dsabench.spec.run import RunSpec
from dsabench.store import RunRecord, read_metrics

pytestmark = pytest.mark.usefixtures("blank_maps")

FIELDS = {
    "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 16, "model.n_layers": 2, "length": 32, "seed": 1,
    "train.steps": 20, "train.warmup_steps": 2, "train.eval_every": 20, "train.tokens_per_step": 256,
    "train.learning_rate": 1e-2, "train.eval_tokens": 96, "data.source": "task:recall", "engine.device": "cpu",
    "data.task": {"n_pairs": 4, "n_keys": 8, "n_values": 4, "curriculum": None},
    "attention.kind": "dsa", "attention.indexer.head_dim": 8, "attention.top_k": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord, RunSpec]:
    """A store with one run on a task, which has three evaluation windows."""
    store = tmp_path_factory.mktemp("task") / "runs"
    spec = load_spec("quick", FIELDS)
    return store, train(spec, store), spec


@pytest.fixture
def here(trained: tuple[Path, RunRecord, RunSpec], shell: Shell, tmp_path: Path) -> Path:
    shutil.copytree(trained[0], tmp_path / "runs")
    return tmp_path


def test_the_last_query_that_asks_is_shown_with_its_targets(here: Path, shell: Shell, trained: object) -> None:
    code, out, err = shell("visualize-selection")
    assert (code, err) == (0, "")
    spec = load_spec("quick", FIELDS)
    windows = TaskWindows(spec.data.task, 32)
    batch = windows.evaluation("val", 96)
    query = int(np.flatnonzero(batch.scored[0])[-1])
    pieces = windows.pieces(batch.inputs[0])
    target = int(batch.targets[0, query, 0])
    assert "k = 8 of 32 tokens, validation window 0 of task:recall" in out
    assert f"query {query} '{pieces[query]}'" in out
    answer = windows.pieces(batch.tokens[0])[query + 1]
    assert f"asked is '{answer}'; the model answers '" in out
    said = re.search(rf"^target '{pieces[target]}' at {target}: (selected, rank \d of 8|not selected)$", out, re.M)
    assert said
    assert ("[*{}*]" if said[1] != "not selected" else "(*{}*)").format(pieces[target]) in out
    shown = out[out.rindex("mass\n") : out.index("<<query>>")].split("\n\n")[1]
    bare = re.sub(r"<<|>>|\[\*?|\*?\]|\(\*|\*\)|[{}]|\|\d", "", shown)
    assert bare.split() == pieces
    assert re.search(r"^layer .* targets ", out, re.M) and "Targets: layer " in out


def test_the_windows_and_answers_are_those_of_the_evaluation(
    here: Path, shell: Shell, trained: tuple[Path, RunRecord, RunSpec]
) -> None:
    record = trained[1]
    last = [one for one in read_metrics(here / "runs", record.run_id) if one["kind"] == "eval"][-1]
    documents = []
    for n in range(3):
        code, out, err = shell("visualize-selection", "--document", str(n), "--json", "--export", f"{n}.parquet")
        assert (code, err) == (0, "")
        documents.append(json.loads(out))
    right = [query["right"] for document in documents for query in document["queries"]]
    assert len(right) == 12
    assert np.mean(right) == pytest.approx(record.summary["task_accuracy"])
    recalls = np.mean([[layer["target_recall"] for layer in document["layers"]] for document in documents], axis=0)
    assert recalls == pytest.approx(last["target_recall_by_layer"], abs=1e-6)
    assert documents[0]["layers"][0]["target_recall_chance"] is not None
    keys = pd.read_parquet(here / "0.parquet")
    listed = [
        (layer["layer"], query["query"], target["key"], layer["rank"])
        for query in documents[0]["queries"] for target in query["targets"] for layer in target["layers"]
        if layer["selected"]
    ]  # fmt: skip
    found = keys.loc[keys["target"], ["layer", "query", "key", "rank"]]
    assert sorted(found.itertuples(index=False, name=None)) == sorted(listed)


MISTAKES = {
    "start": (["--start", "3"], "whose windows are made and not read: a start at token 3 has no place"),
    "text": (["--text", "k1 v1"], "whose windows are made and not read: a text of your own has no place"),
    "document": (["--document", "3"], "validation window 3: there are 3 of them, 0 to 2"),
    "negative": (["--document", "-1"], "validation window -1: there are 3 of them, 0 to 2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_a_task_has_no_place_for_is_one_message(name: str, here: Path, shell: Shell) -> None:
    words, message = MISTAKES[name]
    code, out, err = shell("visualize-selection", *words)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (here / "results").exists()


def test_a_query_that_asks_nothing_names_those_that_do(here: Path, shell: Shell) -> None:
    code, out, _ = shell("visualize-selection", "--query", "2")
    assert code == 0
    assert re.search(r"^nothing is asked here; queries that ask something: (\d+, ){3}\d+$", out, re.M)


def test_tokens_of_another_kind_are_refused_and_other_windows_said(here: Path, shell: Shell) -> None:
    path = next((here / "runs").glob("*/run.json"))
    record = json.loads(path.read_text())
    record["fingerprint"]["corpus"] = "other"
    resealed.write(path, record)
    assert "note: the windows of task:recall are made in another way" in shell("visualize-selection")[2]
    record["fingerprint"]["tokenizer"] = "other"
    resealed.write(path, record)
    code, _, err = shell("visualize-selection")
    assert code == 2
    assert "the tokens of task:recall are others than when run" in err


def test_a_run_says_its_accuracy_beside_the_floor_and_target_recall_beside_chance(
    trained: tuple[Path, RunRecord, RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    store, record, _ = trained
    summary = record.summary
    accuracy, best = summary["task_accuracy"], summary["target_recall_best"]
    line = describe(record)
    assert f"task accuracy {accuracy:.1%} (floor 53.1%)" in line
    assert f"target recall {best:.2f} (chance {summary['target_recall_chance']:.2f})" in line
    print_run(record, store)
    out = capsys.readouterr().out
    assert re.search(rf"task accuracy +{accuracy:.2%}  of answers, floor 53.12%", out)
    assert re.search(rf"target recall +{best:.3f}  of the best layer, chance ", out)
    assert re.search(r"floor +0\.9177  nats per answer \(dsabench guide tasks\)", out)
    assert "per token" not in out and "next tokens" not in out and "unigram" not in out
