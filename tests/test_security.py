"""A store, a spec or a text from somebody else is data: nothing in it is executed, unpickled, or led astray by."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from figure_tools import report_with
from safetensors.torch import load_file, save_file
from shell import Shell
from synthetic import experiment

import dsabench
from dsabench import load_spec, train
from dsabench.attention.plugins import no_plugins
from dsabench.engine import loop
from dsabench.errors import SpecError, StoreError
from dsabench.spec.config import load_sweep, parse_override
from dsabench.store import (
    RunWriter,
    SweepRecord,
    find_checkpoint,
    load_curves,
    load_metrics,
    load_runs,
    read_sweep,
    remove_runs,
    write_sweep,
)
from dsabench.store.index import INDEX

EVIL = "\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>|`x`\u202e\n# y"
FORMULA = "=cmd|' /C calc'!A0"

PLUGIN = """
from pathlib import Path
from typing import Literal
from dsabench.attention.dense import Dense
from dsabench.attention.registry import register
from dsabench.spec.attention import AttentionSpec

Path(CANARY).touch()

class MineSpec(AttentionSpec):
    kind: Literal["mine"] = "mine"

    def n_selected(self, length):
        return 4

@register
class Mine(Dense):
    spec_class = MineSpec

    def flops(self, stage):
        return {"a": 1.0}
"""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What exists when `mine.py` beside it, an attention, was executed."""
    path = tmp_path / "canary"
    (tmp_path / "mine.py").write_text(PLUGIN.replace("CANARY", repr(str(path))))
    return path


def tiny(corpus: Path, **more: Any) -> dict[str, Any]:
    return {
        "length": 16, "data.source": f"path:{corpus}", "data.tokenizer": "bytes", "data.val_share": 0.3,
        "model.d_model": 16, "model.n_heads": 2, "model.d_ff": 8, "model.n_layers": 1, "model.n_experts": 2,
        "train.steps": 3, "train.tokens_per_step": 32, "train.eval_tokens": 64, "engine.device": "cpu", **more,
    }  # fmt: skip


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def odd(text: str) -> set[str]:
    return {character for character in text if not character.isprintable() and character != "\n"}


# Plugins.


@pytest.mark.parametrize("command", ["train", "sweep", "audit", "profile"])
@pytest.mark.parametrize("named_by", ["config", "flag"])
def test_no_plugins_refuses_a_spec_that_names_one(shell: Shell, canary: Path, command: str, named_by: str) -> None:
    (shell.folder / "c.yaml").write_text("base:\n  length: 16\n  plugins: [mine.py]\n")
    words = ["--config", "c.yaml"] if named_by == "config" else ["--set", "plugins=[mine.py]"]
    code, out, err = shell(command, *words, "--no-plugins")
    assert (code, out) == (2, "")
    who = "c.yaml:3: " if named_by == "config" else "--set plugins: "
    assert err == (
        f"error: {who}plugins: mine.py is a Python file that would be executed, and --no-plugins refuses that; leave "
        "--no-plugins out if you trust the file\n"
    )
    assert not canary.exists()


def test_no_plugins_refuses_before_the_file_is_looked_at_and_ends_with_the_command(shell: Shell, canary: Path) -> None:
    assert "--no-plugins refuses" in shell("train", "--set", "plugins=[nowhere.py]", "--no-plugins")[2]
    assert "is not a file" in shell("train", "--set", "plugins=[nowhere.py]")[2]
    with no_plugins(), pytest.raises(SpecError, match=r"overrides: plugins: mine\.py .* refuses"):
        load_spec("quick", {"plugins": ["mine.py"]})
    load_spec("quick", {"plugins": ["mine.py"]})
    assert canary.exists()


def stored_plugin_run(corpus: Path, canary: Path) -> str:
    record = train(load_spec("quick", tiny(corpus, **{"plugins": ["mine.py"], "attention.kind": "mine"})), "runs")
    canary.unlink()
    dsabench.attention.plugins._digests.clear()  # as in a new process
    return record.run_id


def test_a_stored_run_executes_its_plugin_only_when_it_is_named(
    shell: Shell, corpus: Path, canary: Path, one_figure: None
) -> None:
    run_id = stored_plugin_run(corpus, canary)
    unnamed = (
        ["visualize-selection"],
        ["report"],
        ["compare", "--all"],
        ["plot", "learning"],
        ["runs", "show", run_id],
    )
    for words in unnamed:
        shell(*words)
        assert not canary.exists(), words
    assert f"would be executed to open it; name the run to do so: {run_id}" in shell("visualize-selection")[2]
    for words in (["visualize-selection", run_id], ["audit", run_id], ["bench", "--run", run_id, "--device", "cpu"]):
        code, out, err = shell(*words, "--no-plugins")
        assert (code, out) == (2, ""), err
        assert f"error: run {run_id}: plugins: {shell.folder / 'mine.py'} is a Python file that would be" in err
        assert not canary.exists(), words
    code, _, err = shell("report", "--run", run_id, "--no-plugins")
    assert code == 0 and "refuses" in err and not canary.exists()
    assert shell("audit", run_id)[0] in (0, 1)
    assert canary.exists()


def test_a_stored_run_of_a_built_in_attention_executes_nothing(shell: Shell, corpus: Path, canary: Path) -> None:
    """Every run of a sweep names the sweep's plugins; only those of a plugin's attention need them."""
    record = train(load_spec("quick", tiny(corpus, **{"attention.kind": "dsa", "attention.top_k": 4})), "runs")
    path = Path("runs") / record.run_id / "run.json"
    rewrite(path, spec=record.spec | {"plugins": [str(shell.folder / "mine.py")]})
    dsabench.load_model("runs", record.run_id)
    code, _, err = shell("visualize-selection")
    assert code == 0, err
    assert not canary.exists()


# Checkpoints.


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture
def trained(shell: Shell, corpus: Path) -> Path:
    """The checkpoint of a finished run."""
    record = train(load_spec("quick", tiny(corpus, **{"attention.kind": "dsa", "attention.top_k": 4})), "runs")
    folder = find_checkpoint("runs", record.run_id)
    assert folder is not None
    return folder


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded(
    shell: Shell, trained: Path, tmp_path: Path, form: str, name: str
) -> None:
    canary = tmp_path / "canary"
    with (trained / name).open("wb") as file:
        (pickle.dump if form == "pickle" else torch.save)(Bomb(canary), file)
    code, _, err = shell("visualize-selection")
    assert code == 2 and err.count("\n") == 1 and f"{name} cannot be read" in err
    assert not canary.exists()


@pytest.mark.parametrize(
    "state",
    [
        '{"vocab_size": 1e3, "step": 3}', '{"vocab_size": true, "step": 3}', '{"vocab_size": -4, "step": 3}', "[]", "{",
        '{"vocab_size": 99999999999999, "step": 3}', "[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", '"\\ud800"',
    ],
)  # fmt: skip
def test_any_state_json_is_read_or_refused(trained: Path, state: str) -> None:
    (trained / "state.json").write_text(state)
    with pytest.raises(StoreError, match=r"state\.json"):
        dsabench.load_model("runs", trained.parent.name)


@pytest.mark.parametrize("field", ["d_model", "d_ff", "n_layers"])
def test_a_record_that_asks_for_a_huge_model_is_found_out_before_it_is_built(trained: Path, field: str) -> None:
    path = trained.parent / "run.json"
    spec = json.loads(path.read_text())["spec"]
    huge = {"d_model": 65_536, "d_ff": 10**9, "n_layers": 200}[field]
    rewrite(path, spec=spec | {"model": spec["model"] | {field: huge}})
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"model\.safetensors holds no .* of shape"):
        dsabench.load_model("runs", trained.parent.name)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("damage", ["pickle", "other name", "other shape", "step"])
def test_a_damaged_optimizer_is_one_message(
    shell: Shell, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    spec = load_spec("quick", tiny(corpus, **{"train.steps": 6, "engine.checkpoint_every": 2}))
    save = loop.checkpoint.save

    def killed(*arguments: Any) -> None:
        if list(Path("runs").glob("*/checkpoint")):
            monkeypatch.setattr(loop.checkpoint, "save", save)
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop.checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(spec, "runs")
    (path,) = Path("runs").glob("*/checkpoint/optimizer.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("/exp_avg"))
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    elif damage == "step":
        rewrite(path.with_name("state.json"), step="2", seconds="x")
    else:
        values = tensors.pop(name)
        save_file(tensors | ({"x/exp_avg": values} if damage == "other name" else {name: values.flatten()[:3]}), path)
    with pytest.raises(StoreError, match=r"state\.json" if damage == "step" else r"optimizer\.safetensors"):
        train(spec, "runs")
    assert not (tmp_path / "canary").exists()


# Specs.

BILLION_LAUGHS = "a: &a [1]\n" + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text",
    [
        "base: !!python/object/apply:os.system ['touch canary']",
        "base: !!python/object/new:pathlib.Path [canary]",
        "!!python/name:os.system x: 1",
        "base: &a [*a]",
        "base: {<<: *nobody}",
        BILLION_LAUGHS,
        "[" * 100_000,
        "base: " + "{a: " * 5000,
        "base: {length: " + "9" * 10_000 + "}",
        "base: {length: .inf}",
        "base: {train: {learning_rate: .nan}}",
        "base: {plugins: [\"a\\0b\"]}",
        "base: {plugins: [~nobody_at_all/x.py]}",
        "base: {plugins: [" + "x" * 10_000 + "]}",
        "axes: {length: [" + "16," * 600_000 + "]}",
    ],
)  # fmt: skip
def test_a_hostile_spec_is_one_clean_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(SpecError):
        load_sweep(str(path)).runs()
    assert time.monotonic() - started < 30
    assert [found.name for found in tmp_path.iterdir()] == ["c.yaml"]


def test_a_set_value_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="tags"):
        parse_override("seed=!!python/object/apply:os.system ['touch canary']")
    assert not list(tmp_path.iterdir())


# Names that would lead out of the store, and links in it.


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "x\n", "sweeps", "\x00", "x" * 300]
)
def test_an_id_that_could_name_something_outside_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = tmp_path / "runs"
    ids = experiment(store, lengths=(16,), seeds=(1, 2, 3))
    before = sorted(path.name for path in tmp_path.iterdir())
    rewrite(store / ids[0] / "run.json", run_id=name)
    rewrite(store / "sweeps" / "synthetic-00000000.json", run_ids=[*ids, name])
    with pytest.raises(StoreError, match="in a folder of another name"):
        dsabench.load_model(store, ids[0])
    frame = load_runs(store)
    assert set(frame["run_id"]) == set(ids) and "unreadable" in set(frame["status"])
    for call in (
        lambda: remove_runs(store, [name]),
        lambda: load_metrics(store, [name]),
        lambda: find_checkpoint(store, name),
        lambda: read_sweep(store, name),
        lambda: write_sweep(store, SweepRecord(id=name, spec={}, run_ids=[])),
        lambda: RunWriter.open(store, name, spec={}, fingerprint={}, environment={}),
    ):
        with pytest.raises(StoreError):
            call()
    rewrite(store / "sweeps" / "synthetic-00000000.json", id=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_removing_follows_no_link(tmp_path: Path) -> None:
    store, outside = tmp_path / "runs", tmp_path / "outside"
    ids = experiment(store, lengths=(16,), seeds=(1, 2, 3))
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    (store / ids[0] / "inner").symlink_to(outside)
    (store / ids[0] / "file").symlink_to(outside / "precious.txt")
    shutil.move(store / ids[1], outside / "run")
    (store / ids[1]).symlink_to(outside / "run")
    remove_runs(store, ids[:2])
    assert (outside / "precious.txt").read_text() == "precious" and (outside / "run" / "run.json").exists()
    assert not set(ids[:2]) & set(load_runs(store)["run_id"])


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "the folder"])
def test_a_run_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Older versions of filelock empty the file that a linked lock leads to."""
    store, precious = tmp_path / "runs", tmp_path / "precious"
    (run_id,) = experiment(store, lengths=(16,), seeds=(1,), attentions=({"kind": "dense"},))
    rewrite(store / run_id / "run.json", status="interrupted")
    if name == "the folder":
        shutil.move(store / run_id, precious)
        (store / run_id).symlink_to(precious)
        before = sorted(path.name for path in precious.iterdir())
    else:
        (store / run_id / name).unlink(missing_ok=True)
        precious.write_text('{"kind": "train", "step": 1}\n{"to')
        (store / run_id / name).symlink_to(precious)
    with pytest.raises(StoreError, match="a link, and nothing is written through one"):
        RunWriter.open(store, run_id, spec={}, fingerprint={}, environment={})
    if name == "the folder":
        assert sorted(path.name for path in precious.iterdir()) == before
    else:
        assert precious.read_text() == '{"kind": "train", "step": 1}\n{"to'


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_temporary_file_that_somebody_left_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    """Their names are known: a store of somebody else's may hold them, and a mere look at it writes its index."""
    store, precious = tmp_path / "runs", tmp_path / "precious"
    experiment(store, lengths=(16,), seeds=(1,))
    precious.write_text("precious")
    for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
        (store / name).unlink(missing_ok=True)
        temporary = store / f".{name}.tmp"
        os.mkfifo(temporary) if kind == "pipe" else temporary.symlink_to(precious)
    assert len(load_runs(store)) == 2
    load_curves(store)
    assert precious.read_text() == "precious"
    for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
        assert (store / name).is_file() and not (store / name).is_symlink()
    assert not list(store.glob("*.tmp"))


# Caches that somebody made.


def test_an_index_of_other_types_or_columns_is_made_anew(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    experiment(store, lengths=(16,), seeds=(1, 2))
    good = load_runs(store)
    whole = pq.read_table(store / INDEX)
    for change in (
        lambda frame: frame.assign(length="x"),
        lambda frame: frame.drop(columns=["status"]),
        lambda frame: frame.assign(run_id=list("abcd")),
        lambda frame: frame.iloc[:0],
        lambda frame: frame.set_index("run_id"),
        lambda frame: pd.DataFrame({"a": [1]}),
    ):
        changed = change(whole.to_pandas())
        table = pq.read_table(io.BytesIO(changed.to_parquet())).schema.metadata
        made = whole.from_pandas(changed).replace_schema_metadata(
            {**table, b"dsabench": whole.schema.metadata[b"dsabench"]}
        )
        pq.write_table(made, store / INDEX)
        pd.testing.assert_frame_equal(load_runs(store), good)


@pytest.mark.parametrize("damage", ["created", "rows", "pipe"])
def test_rows_behind_the_index_that_are_none_are_made_anew(tmp_path: Path, damage: str) -> None:
    import gzip

    store = tmp_path / "runs"
    ids = experiment(store, lengths=(16,), seeds=(1, 2))
    good = load_runs(store)
    token, *rows = map(json.loads, gzip.decompress((store / ".index.json.gz").read_bytes()).splitlines())
    if damage == "created":
        for row in rows:
            row["created"] = "yesterday"
    if damage == "rows":
        rows = [1] * len(rows)
    (store / ".index.json.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, [token, *rows])).encode()))
    if damage == "pipe":
        for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
            (store / name).unlink(missing_ok=True)
            os.mkfifo(store / name)
    os.utime(store / ids[0] / "run.json")
    pd.testing.assert_frame_equal(load_runs(store), good)


# What is shown.


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with the figure that says most; the others take seconds and have tests of their own."""
    report_with(monkeypatch, "forest")


@pytest.fixture
def hostile(shell: Shell) -> list[str]:
    """A store whose records hold what would act on a terminal, a page, a table or a spreadsheet, wherever text fits."""
    ids = experiment(Path("runs"), lengths=(16, 32), seeds=(1, 2, 3))
    for i, run_id in enumerate(ids):
        path = Path("runs") / run_id / "run.json"
        record = json.loads(path.read_text())
        record["environment"] |= {"device_name": EVIL, "data_notes": [EVIL], EVIL: FORMULA}
        record["fingerprint"][EVIL] = EVIL
        record["spec"] |= {EVIL: FORMULA}
        record["spec"]["data"]["source"] = EVIL if i < 6 else "sotu"
        if record["spec"]["attention"]["kind"] == "dsa":
            record["spec"]["attention"]["kind"] = FORMULA + EVIL
        record["summary"] |= {EVIL: 1.0, f"{EVIL}s": FORMULA}
        record |= {"version": EVIL, **({"status": "failed", "error": FORMULA + EVIL} if i == 0 else {})}
        path.write_text(json.dumps(record))
    path = Path("runs/sweeps/synthetic-00000000.json")
    spec = {"base": {EVIL: EVIL}, "axes": {EVIL: [EVIL]}, "verdict": {"margin": 0.02}}
    rewrite(path, spec=spec, command=["dsabench", EVIL], rungs={EVIL: ids}, run_ids=[*ids, EVIL])
    return ids


COMMANDS = (
    ("runs",), ("runs", "--json"), ("runs", "--columns", "version", "data.source"), ("runs", "show", "RUN"),
    ("runs", "show", "RUN", "--json"), ("compare",), ("compare", "--all"), ("compare", "--json"), ("compare", "--csv"),
    ("compare", "--markdown"), ("compare", "--latex"), ("plot", "forest", "--formats", "svg"),
    ("report",), ("report", "--json"),
    ("visualize-selection", "RUN"), ("audit", EVIL), ("audit", "RUN"), ("compare", "--where", f"seed > '{EVIL}'"),
    ("train", "--set", f"data.source={EVIL}"), ("train", "--config", f"{EVIL}.yaml"), ("runs", "show", EVIL),
)  # fmt: skip


def test_no_command_lets_a_record_command_the_terminal(hostile: list[str], shell: Shell, one_figure: None) -> None:
    for words in COMMANDS:
        code, out, err = shell(*(hostile[1] if word == "RUN" else word for word in words))
        assert code in (0, 2), (words, err)
        assert not odd(out + err), words
        if words[-1] == "--json":
            json.loads(out)
        if words[-1] == "--markdown":
            assert "<script>" not in out.replace("\\<script\\>", "") and len(re.findall("^# y", out, re.MULTILINE)) == 0
        if words[-1] == "--latex":
            assert all(line.startswith(("%", "\\", " ")) or "&" in line or not line for line in out.splitlines()), out
    page = Path("results/report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and not odd(page)
    for path in Path("results").glob("*.svg"):
        assert "<script>" not in path.read_text() and not odd(path.read_text())


def test_no_csv_holds_a_formula(hostile: list[str], shell: Shell) -> None:
    assert shell("runs", "export", "r.csv", "--all")[0] == 0
    assert shell("runs", "export", "r.parquet", "--all")[0] == 0
    tables = [
        pd.read_csv("r.csv", dtype=str),
        pd.read_csv(io.StringIO(shell("compare", "--csv", "--all")[1]), dtype=str),
    ]
    for table in tables:
        cells = [*table.columns, *table.to_numpy().flatten()]
        assert any(isinstance(cell, str) and "=cmd" in cell for cell in cells)
        for cell in cells:
            assert not isinstance(cell, str) or not re.match(r"[=+\-@\t\r](?![\d.]+(e[+-]?\d+)?$)", cell), cell
    assert FORMULA in set(pd.read_parquet("r.parquet").astype(str).to_numpy().flatten()), "parquet keeps the text"


def test_a_document_of_scripts_and_escapes_is_shown_as_text(shell: Shell, tmp_path: Path, one_figure: None) -> None:
    folder = tmp_path / "texts\x1b[31m"
    folder.mkdir()
    line = "\x1b]0;owned\x07\x1b[2J\u202e<script>alert(1)</script></script><!--<img src=x onerror=alert(1)> {{DATA}}\n"
    for i in range(4):
        (folder / f"<b>{i}\x1b[31m.txt").write_text(f"{i}{line}" * 20)
    record = train(
        load_spec(
            "quick",
            tiny(folder, **{"length": 96, "train.tokens_per_step": 96, "attention.kind": "dsa", "attention.top_k": 8}),
        ),
        "runs",
    )
    shell.patch.setenv("COLUMNS", "80")
    shell.patch.setenv("FORCE_COLOR", "1")
    code, out, err = shell("visualize-selection", "--text", line * 2)
    assert code == 0, err
    assert not odd(re.sub(r"\x1b\[[\d;]*m", "", out)) and "\\x1b" in out and "\x1b]" not in out + err
    shell.patch.setenv("COLUMNS", "200")
    shell.patch.delenv("FORCE_COLOR")
    code, out, err = shell("visualize-selection")
    assert code == 0, err
    assert not odd(out + err)
    page = Path(f"results/selection_{record.run_id}.html").read_text()
    assert "<script>alert" not in page and "<img" not in page and not odd(page)
    assert page.count("</script>") == len(re.findall(r"<script\b", page))
    code, _, err = shell("report")
    assert code == 0, err
    page = Path("results/report.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and not odd(page)


def test_a_corpus_that_was_pickled_by_numpy_is_not_read(shell: Shell, corpus: Path, tmp_path: Path) -> None:
    """The cache's arrays: an entry that holds objects is made anew."""
    canary = tmp_path / "canary"
    cache = tmp_path / "cache"
    shell.patch.setenv("DSABENCH_CACHE", str(cache))
    spec = load_spec("quick", tiny(corpus))
    dsabench.build_model(spec)
    (path,) = cache.rglob("arrays.npz")
    with path.open("wb") as file:
        np.savez(file, **dict.fromkeys(("train", "val", "kept_train", "counts_V"), np.array([Bomb(canary)], object)))
    meta = json.loads((path.parent / "meta.json").read_text())
    meta["files"]["arrays.npz"] = {"size": path.stat().st_size, "blake2b": ""}
    (path.parent / "meta.json").write_text(json.dumps(meta))
    dsabench.build_model(spec)
    assert not canary.exists()
