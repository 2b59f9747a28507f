"""Texts and records from somebody else, shown: they command no terminal, page or spreadsheet."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hostile import EVIL, FORMULA, Bomb, odd, rewrite, tiny
from resealed import write
from shell import Shell
from synthetic import experiment

import dsabench
from dsabench import load_spec, train


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
        write(path, record)
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
