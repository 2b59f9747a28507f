"""`dsabench profile` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shell import Shell

from dsabench.cli.console import stdout_console
from dsabench.cli.views import profile_tables

SMALL = [
    "--config", "quick", "--set", "model.d_model=32", "--set", "model.n_heads=2", "--set", "model.d_ff=16",
    "--set", "model.n_layers=1",
    "--set", "train.tokens_per_step=128", "--set", "data.vocab_size=300", "--set", "data.val_share=0.25",
    "--set", "attention.indexer.head_dim=8", "--device", "cpu", "--steps", "2",
]  # fmt: skip


def small(corpus: Path, *words: str) -> list[str]:
    return ["profile", *SMALL, "--set", f"data.source=path:{corpus}", *words]


@pytest.mark.slow
def test_each_case_has_a_table_and_all_have_a_summary(
    shell: Shell, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wider in a wide terminal."""
    printed: list[Any] = []
    honest = profile_tables.profile_lines
    monkeypatch.setattr(profile_tables, "profile_lines", lambda *given: (printed.append(given), honest(*given))[1])
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = shell(*small(corpus, "--lengths", "16", "32", "--stage", "both"))
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    monkeypatch.setenv("COLUMNS", "120")
    honest(*printed[0][:2], stdout_console())
    assert shell.capsys.readouterr().out == out
    heads = [line for line in lines if "(cpu, fp32, eager)" in line]
    assert [head.split("  ")[0] for head in heads] == [
        "dense L=16", "dsa L=16 dense stage", "dsa L=16", "dense L=32", "dsa L=32 dense stage", "dsa L=32",
    ]  # fmt: skip
    assert sum(line.startswith("idle ") for line in lines) == 6
    assert sum(line.startswith("top-k ") for line in lines) == 2
    summary = out[out.index("\ncase ") :].splitlines()[3:9]
    assert [line[:20].strip() for line in summary] == [head.split("  ")[0] for head in heads]
    assert "[6/6] dsa-L32: tracing" in err
    for name in ("dense-L16", "dsa-L16", "dsa-L16-dense-stage", "dsa-L32"):
        assert [path.name for path in (shell.folder / "results/profile" / name).iterdir()] == ["trace.json.gz"]
        assert f"trace: results/profile/{name}/trace.json.gz" in lines
    assert not (shell.folder / "runs").exists()


def test_json_says_all_and_without_options_it_is_the_first_length_of_all_attentions(shell: Shell, corpus: Path) -> None:
    code, out, err = shell(*small(corpus, "--json", "--quiet", "--out", "elsewhere"))
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["environment"]["device"] == "cpu"
    cases = document["cases"]
    assert [(case["attention"], case["length"], case["seed"]) for case in cases] == [
        ("dense", 64, 42),
        ("dsa", 64, 42),
    ]
    for case in cases:
        ms = sum(part["ms"] for part in case["parts"]) + case["idle_ms"]
        assert ms == pytest.approx(case["step_ms"])
        assert case["blocks"] * case["steps_per_block"] == 2
        assert Path(case["trace"]).parts[0] == "elsewhere"
    assert "indexer" not in {part["part"] for part in cases[0]["parts"]}
    assert {"indexer", "top-k", "indexer loss"} <= {part["part"] for part in cases[1]["parts"]}


def test_one_run_can_be_chosen(shell: Shell, corpus: Path) -> None:
    words = ["--length", "16", "--attention", "dsa", "--seed", "7", "--set", "attention.top_k=3"]
    code, out, err = shell(*small(corpus, *words))
    assert code == 0, err
    assert out.startswith("dsa L=16  (cpu")
    assert "\ncase " not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "warm"], "--stage warm: accepted are sparse, dense, both"),
        (["--length", "16", "--lengths", "16"], "--length and --lengths exclude each other"),
        (["--attention", "dsa", "--attentions", "dense"], "--attention and --attentions exclude each other"),
        (["--attentions", "sparse"], "--attentions: "),
        (["--attention", "dense", "--set", "attention.top_k=3"], "is not a field of attention dense"),
        (["--lengths", "16", "100000"], "length 100000"),
        (["--steps", "0"], "--steps"),
        (["--device", "gpu"], "engine.device"),
        (["--out", "a_file"], "a_file is a file"),
    ],
)
def test_mistakes_are_one_message(shell: Shell, corpus: Path, words: list[str], message: str) -> None:
    (shell.folder / "a_file").touch()
    code, out, err = shell(*small(corpus, *words))
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (shell.folder / "results").exists()
