"""`dsabench compare` as a user meets it: every form of output, exit codes, and one message for each mistake."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import resealed
import synthetic
from jsonschema import Draft202012Validator
from shell import Shell

from dsabench.analysis.compare import compare
from dsabench.analysis.scope import look_at
from dsabench.cli.console import PlainConsole
from dsabench.cli.views.compare_tables import comparison_lines
from dsabench.spec.run import RunSpec, validate

DENSE, DSA = {"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.25}


def worse(spec: RunSpec) -> float:
    return 0.2 if spec.attention.kind == "dsa" else 0.0


@pytest.fixture
def store(shell: Shell) -> Path:
    synthetic.experiment(shell.folder / "runs", attentions=(DENSE, DSA, DSA | {"top_k_ratio": 0.5}))
    return shell.folder / "runs"


def test_without_arguments_it_judges_the_newest_sweep(shell: Shell, store: Path) -> None:
    code, out, err = shell("compare")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "val_loss of sweep synthetic-00000000, against dense"
    assert lines[1].startswith("DSA k=0.25L: yes, at 64 to 256 tokens: within 0.02 nats of dense (5 seeds), at 1.2")
    assert sum("not worse" in line and "[" in line for line in lines) >= 6
    assert "Holm's correction over the lengths" in out
    assert "margin of 0.02 nats per token (fixed in the sweep)" in out
    assert "No significance test" not in out


def test_every_form_holds_the_same_verdicts(shell: Shell, store: Path) -> None:
    document = json.loads(shell("compare", "--json")[1])
    verdicts = [row["verdict"] for table in document["tables"] for row in table["rows"]]
    assert len(verdicts) == 6
    rows = list(csv.DictReader(io.StringIO(shell("compare", "--csv")[1])))
    assert [row["verdict"] for row in rows] == verdicts
    assert shell("compare", "--markdown")[1].count("| not worse |") == verdicts.count("not worse")
    assert shell("compare", "--latex")[1].count("& not worse") == verdicts.count("not worse")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_has_verdict_and_answer_on_its_first_screen(store: Path, width: int) -> None:
    (path,) = store.glob("dense-L64-s42-*/run.json")
    resealed.replace(path, '"step_ms": 4.0', '"step_ms": 9.0')
    found, text = compare(look_at(store)), io.StringIO()
    comparison_lines(found, PlainConsole(file=text, width=width, force_terminal=True, color_system=None))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    order = ("WARNING", "DSA k=0.25L: yes", "DSA k=0.5L: yes", "length")
    places = [next(i for i, line in enumerate(lines) if line.startswith(name)) for name in order]
    assert places == sorted(places)
    assert sum("not worse" in line for line in lines[:40]) >= 6
    for shown in ("(0.99)", " 2.25 "):
        assert shown in text.getvalue(), "the ratio in brackets, and the spread"
    assert "Holm" not in text.getvalue() and "--explain" in lines[-1]
    explained = io.StringIO()
    comparison_lines(found, PlainConsole(file=explained, width=width, force_terminal=True), explain=True)
    assert "Holm's correction" in explained.getvalue()


@pytest.mark.parametrize("colour", [True, False])
def test_verdicts_are_coloured_where_there_is_colour(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    effects = {64: 0.2, 128: 0.0, 256: 0.012}
    store = shell.folder / "runs"
    synthetic.experiment(store, effect=lambda s: effects[s.length] * (s.attention.kind == "dsa"), noise=0.01)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    text = io.StringIO()
    comparison_lines(compare(look_at(store)), PlainConsole(file=text, width=120, force_terminal=True))
    styled = re.findall(r"\x1b\[(\d+)m(worse|not worse|inconclusive)", text.getvalue())
    assert styled == ([("31", "worse"), ("32", "not worse"), ("33", "inconclusive")] if colour else [])


def test_the_schema_describes_the_document(shell: Shell, store: Path) -> None:
    schema = json.loads(shell("schema", "compare")[1])
    document = json.loads(shell("compare", "--json", "--where", "seed < 44")[1])
    assert document["tables"][0]["rows"][0]["p_adjusted"] is None, "two pairs get no p: the schema must allow null"
    Draft202012Validator(schema).validate(document)
    assert "paired differences" in schema["$defs"]["Estimate"]["description"]


def test_a_worse_verdict_fails_only_when_asked(shell: Shell) -> None:
    synthetic.experiment(shell.folder / "runs", effect=worse)
    assert shell("compare")[0] == 0
    assert shell("compare", "--fail-if-worse")[0] == 3
    assert shell("compare", "--fail-if-worse", "--metric", "val_accuracy")[0] == 2


def test_what_has_no_verdict_does_not_pass_the_gate(shell: Shell) -> None:
    synthetic.experiment(shell.folder / "runs", seeds=(1, 2))
    code, out, err = shell("compare", "--fail-if-worse")
    assert code == 2
    assert "nothing was shown to hold" in err
    assert "inconclusive" in out


def test_a_withheld_verdict_does_not_pass_the_gate(shell: Shell) -> None:
    """Though another length is not worse; where one is worse, that is what is said."""
    store = shell.folder / "runs"
    attentions = (DENSE, {"kind": "dsa", "top_k": 100})
    synthetic.experiment(store, lengths=(64, 128), attentions=attentions)
    code, _, err = shell("compare", "--fail-if-worse")
    assert code == 2
    assert "1 of 2 comparisons proved nothing (selects everything)" in err
    assert shell("compare", "--fail-if-worse", "--where", "length == 128")[0] == 0
    synthetic.experiment(store, lengths=(64, 128), attentions=attentions, effect=worse)
    assert shell("compare", "--fail-if-worse")[0] == 3


def test_what_is_inconclusive_beside_a_verdict_passes_with_a_note(shell: Shell) -> None:
    noise = {64: 0.0, 128: 0.05}
    synthetic.experiment(
        shell.folder / "runs", lengths=(64, 128), noise=0, effect=lambda s: noise[s.length] * (s.seed % 2)
        * (s.attention.kind == "dsa"),
    )  # fmt: skip
    code, _, err = shell("compare", "--fail-if-worse")
    assert (code, err) == (0, "note: --fail-if-worse: 1 of 2 comparisons are inconclusive, and passed\n")


def test_a_leak_fails_the_gate(shell: Shell) -> None:
    synthetic.experiment(shell.folder / "runs", leak=True)
    code, out, _ = shell("compare", "--fail-if-worse")
    assert code == 3
    assert "LEAK" in out


def test_left_out_runs_are_named(shell: Shell, store: Path) -> None:
    for seed in range(100, 120):
        synthetic.finished(store, validate({"length": 64, "seed": seed, "attention": DENSE}), 4.4, status="failed")
    out = shell("compare", "--all")[1]
    assert "In no pair: 20 runs" in out
    assert "dense-L64-s100" in out
    assert "and 8 more" in out
    assert len(json.loads(shell("compare", "--all", "--json")[1])["left_out"]) == 20


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no store": (["--store", "nowhere"], "nowhere: no run store there"),
    "a file": (["--store", "file"], "file: a file, not a run store"),
    "no such sweep": (["--sweep", "zzz"], "--sweep zzz: no such sweep"),
    "both": (["--sweep", "syn", "--all"], "exclude each other"),
    "metric": (["--metric", "loss"], "--metric loss: not a metric that can be compared"),
    "baseline": (["--baseline", "dens"], "did you mean dense?"),
    "ambiguous baseline": (["--baseline", "dsa"], "name one of them: dsa top_k_ratio=0.25"),
    "where": (["--where", "lenth == 64"], "no column lenth; did you mean length?"),
    "where nothing": (["--where", "length == 7"], "keeps none of the 45 runs"),
    "margin": (["--margin", "-1"], "a number above 0"),
    "explain": (["--explain", "--csv"], "--explain and --csv exclude each other"),
    "two forms": (["--json", "--csv"], "--json and --csv exclude each other"),
    "empty store": (["--store", "empty"], "a store without runs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_exit_2(name: str, shell: Shell, store: Path) -> None:
    (shell.folder / "file").write_text("")
    (shell.folder / "empty").mkdir()
    words, message = MISTAKES[name]
    code, out, err = shell("compare", *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err


def test_one_attention_alone_says_so(shell: Shell) -> None:
    synthetic.experiment(shell.folder / "runs", attentions=(DENSE,))
    code, out, _ = shell("compare")
    assert code == 0
    assert "nothing to compare: only dense runs have finished" in out
    code, _, err = shell("compare", "--baseline", "dsa")
    assert code == 2
    assert "--baseline dsa: no run has that attention" in err
    synthetic.experiment(shell.folder / "sparse", attentions=(DSA,))
    code, _, err = shell("compare", "--store", "sparse")
    assert code == 2
    assert "train dense runs too (dsabench sweep --attentions dense dsa ...), or --baseline dsa" in err


def test_why_a_run_failed_is_said_on_one_line(shell: Shell, store: Path) -> None:
    error = "\n  " + "out of GPU memory " * 20 + "\x1b[31m\nTraceback: ..."
    for seed, text in ((100, error), (101, "loss is NaN at step 7\nTraceback"), (102, None)):
        spec = validate({"length": 64, "seed": seed, "attention": DENSE})
        synthetic.finished(store, spec, 4.4, status="failed", error=text)
    lines = {line.split(":")[0].strip(): line for line in shell("compare", "--all")[1].splitlines() if "-s10" in line}
    long, short, without = (next(line for name, line in lines.items() if f"-s{s}-" in name) for s in (100, 101, 102))
    assert ": failed: out of GPU memory out" in long and long.endswith(" ...") and len(long) < 170
    assert short.endswith(": failed: loss is NaN at step 7")
    assert without.endswith(": failed")
    assert "Traceback" not in "".join(lines.values())
