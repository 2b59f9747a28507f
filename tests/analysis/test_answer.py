"""The answer in plain words: what it says of every kind of verdict, and of what proves nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import resealed
import synthetic
from compared import DENSE, DSA, on
from hypothesis import given
from hypothesis import strategies as st

from dsabench.analysis.answer import answer
from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison, Table
from dsabench.analysis.comparison_row import Estimate, Row
from dsabench.analysis.scope import look_at


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def edit(store: Path, pattern: str, **summary: Any) -> None:
    for path in store.glob(f"{pattern}/run.json"):
        resealed.revise(path.parent, **summary)


def said(store: Path, **options: Any) -> str:
    return compare(look_at(store, everything="sweep" not in options), **options).answer


def test_as_good_within_the_margin_at_a_cost(store: Path) -> None:
    synthetic.experiment(store)
    assert said(store) == (
        "Yes, at 64 to 256 tokens: within 0.02 nats of dense (5 seeds), at 1.2 to 1.6 times the time of a step."
    )


def test_better_and_a_win_that_cannot_be_believed(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), effect=on("dsa", -0.1), noise=0)
    text = "better than dense by 0.100 nats (5 seeds), at 1.2 times the time of a step."
    assert said(store) == f"Yes, at 64 tokens: {text}"
    synthetic.experiment(store, lengths=(64,), effect=on("dsa", -2.0), noise=0)
    assert said(store).startswith("Yes, if it can be believed, at 64 tokens: better than dense by 2.000 nats")
    assert said(store).endswith("A win that large is a bug until shown otherwise.")


def test_better_at_one_length_and_as_good_at_others_is_one_yes(store: Path) -> None:
    synthetic.experiment(store, effect=on("dsa", -0.1, only=128), noise=0.002)
    assert re.fullmatch(
        r"Yes: better than dense by 0\.\d{3} nats at 128 tokens, and within 0\.02 nats of dense at 64 and 256 tokens "
        r"\(5 seeds\), at 1\.2 to 1\.6 times the time of a step\.",
        said(store),
    )


def test_worse(store: Path) -> None:
    synthetic.experiment(store, effect=on("dsa", 0.1), noise=0)
    assert said(store).startswith("No, at 64 to 256 tokens: worse than dense by 0.100 nats (5 seeds), at 1.2 to 1.6")


def test_lengths_that_differ_are_sentences_of_their_own(store: Path) -> None:
    effects = {64: 0.0, 128: 0.1, 256: 0.0}
    synthetic.experiment(store, effect=lambda s: effects[s.length] * (s.attention.kind == "dsa"), noise=0.001)
    first, yes, no = re.split(r"(?<=\.) (?=[A-Z])", said(store))
    assert first == "It depends on the length."
    assert yes.startswith("Yes, at 64 and 256 tokens: within 0.02 nats of dense")
    assert no.startswith("No, at 128 tokens: worse than dense by 0.")


def test_what_is_not_settled_says_how_many_seeds_would_settle_it(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), noise=0.05)
    found = compare(look_at(store))
    (row,) = found.rows
    ends = f"between {-row.difference.low:.3f} nats better and {row.difference.high:.3f} nats worse than dense"
    assert found.answer == (
        f"Not settled at 64 tokens: {ends} (5 seeds); about {row.seeds_needed} seeds would settle it."
    )
    one = compare(look_at(store, where="seed == 42"))
    assert one.answer == "Not settled at 64 tokens: a verdict needs at least 3 seeds, there is 1."


def test_a_metric_where_more_is_better_and_none_has_a_margin(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    assert said(store, metric="val_accuracy") == (
        "Not settled in validation accuracy, at 64 tokens: the same as dense in each of 5 seeds; only a margin "
        "(--margin) could show that it is as good."
    )
    for i, seed in enumerate(range(42, 47)):
        edit(store, f"dsa-L64-s{seed}-*", val_accuracy=0.28 + i / 1000)
    assert said(store, metric="val_accuracy").startswith(
        "Yes, in validation accuracy, at 64 tokens: better than dense by 3.2 percentage points (5 seeds), at 1.2 times"
    )
    assert said(store, metric="step_ms") == "No, in step time, at 64 tokens: worse than dense by 0.64 ms (5 seeds)."


def test_a_margin_chosen_afterwards_is_said(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    text = said(store, margin=0.1)
    assert "within 0.1 nats of dense, a margin chosen after the runs (5 seeds)" in text


def test_several_variants_and_settings_are_named(store: Path) -> None:
    attentions = (DENSE, DSA, DSA | {"top_k_ratio": 0.5})
    synthetic.experiment(store, lengths=(64,), attentions=attentions, sweep=None)
    lines = said(store).split("\n")
    assert [line.split(": ")[0] for line in lines] == ["DSA k=0.25L", "DSA k=0.5L"]
    assert all(line.split(": ")[1] == "yes, at 64 tokens" for line in lines)
    synthetic.experiment(store, lengths=(64,), attentions=attentions, train={"steps": 500}, sweep=None)
    assert said(store).split("\n")[0].startswith("DSA k=0.25L, steps=500: yes, at 64 tokens: ")


def test_nothing_to_compare(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), attentions=(DENSE,))
    assert said(store) == (
        "No answer: only dense runs have finished, and a comparison needs dense and another attention."
    )


def test_a_leak(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), effect=on("dsa", -2.0), leak=True)
    assert said(store) == "No verdict: LEAK, it sees later tokens, so its numbers mean nothing."


@pytest.mark.parametrize(("k", "everything"), [(63, False), (64, True), (100, True)])
def test_a_selection_of_everything_gets_no_verdict(store: Path, k: int, everything: bool) -> None:
    attentions = (DENSE, {"kind": "dsa", "top_k": k})
    synthetic.experiment(store, lengths=(64, 128), attentions=attentions)
    found = compare(look_at(store))
    verdicts = {row.length: (row.verdict, row.withheld) for row in found.rows}
    assert verdicts[128] == ("not worse", None)
    assert verdicts[64] == (("no verdict", "selects everything") if everything else ("not worse", None))
    assert ("No verdict at 64 tokens: it selects everything (k = 64)" in found.answer) == everything
    assert [("selects everything" in line) for line in found.warnings] == [True] * everything
    assert (not found.tables[0].trends) == everything, "one length is no trend"


def test_models_that_learnt_nothing_get_no_verdict(store: Path) -> None:
    """The six models of one length and three seeds."""
    synthetic.experiment(store, lengths=(64,), seeds=(1, 2, 3))
    edit(store, "*", unigram_loss=4.0)
    found = compare(look_at(store))
    assert (found.rows[0].verdict, found.rows[0].learnt_nothing) == ("no verdict", 6)
    assert found.answer.startswith("No verdict: all six models are above the unigram baseline")
    assert "6 of 6 runs are no better than the unigram baseline" in found.warnings[0]
    assert "not worse" not in json.dumps(found.model_dump(mode="json"))
    edit(store, "*", unigram_loss=6.75)
    edit(store, "dense-L64-s2-*", unigram_loss=4.0)
    assert said(store).startswith("No verdict: one of six models is above the unigram baseline")


@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "no verdict"), (3.0, "worse")])
def test_a_variant_that_alone_learnt_nothing_can_only_be_worse(store: Path, effect: float, verdict: str) -> None:
    synthetic.experiment(store, lengths=(64,), effect=on("dsa", effect), noise=0)
    edit(store, "dsa-*", unigram_loss=4.3)
    assert [row.verdict for row in compare(look_at(store)).rows] == [verdict]


def test_on_a_task_a_solver_that_does_not_see_it_must_be_beaten(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), seeds=(1, 2, 3), **synthetic.TASK)
    assert said(store).startswith("Yes, at 64 tokens: within 0.02 nats of dense (3 seeds)")
    edit(store, "*", chance_accuracy=0.9)
    assert said(store) == (
        "No verdict: all six models are no better than a solver that does not see what the task is about."
    )


def test_times_of_a_busy_machine_are_no_cost_and_no_verdict(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), seeds=(1, 2, 3))
    for seed, ms in ((1, 264.0), (2, 218.0), (3, 100.0)):
        edit(store, f"dense-L64-s{seed}-*", step_ms=ms)
    found = compare(look_at(store))
    assert (found.rows[0].time_spread, found.rows[0].verdict) == (2.64, "not worse")
    assert found.answer.endswith(
        "what a step costs is not known: step times of one shape differ up to 2.64-fold between seeds."
    )
    times = compare(look_at(store), metric="step_ms")
    assert (times.rows[0].verdict, times.rows[0].withheld) == ("no verdict", "noisy times")
    assert times.answer == "No verdict: step times of one shape differ up to 2.64-fold between seeds."
    edit(store, "dense-L64-s3-*", peak_memory_mb=5000.0)
    assert compare(look_at(store), metric="peak_memory_mb").rows[0].withheld == "unlike memory"


KINDS = {
    "better": (-0.1, None), "not worse": (0.001, None), "worse": (0.1, None), "inconclusive": (0.01, None),
    "LEAK": (-2.0, None), "no verdict": (0.0, "learnt nothing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("template") / "runs"
    synthetic.experiment(folder, lengths=(64,))
    return compare(look_at(folder))


@given(verdicts=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5), doubt=st.sampled_from(["", "noise"]))
def test_every_length_is_in_the_sentence_of_its_verdict(template: Comparison, verdicts: list[str], doubt: str) -> None:
    """And a good verdict is a yes, a bad one a no, and nothing is denied twice."""
    (row,) = template.rows
    rows: list[Row] = []
    for i, verdict in enumerate(verdicts):
        mean, withheld = KINDS[verdict]
        difference = Estimate(n=5, mean=mean, sd=0.01, low=mean - 0.01, high=mean + 0.01)
        values = {"length": 64 + i, "verdict": verdict, "withheld": withheld, "difference": difference}
        rows.append(row.model_copy(update=values | {"time_doubt": doubt, "learnt_nothing": 1, "seeds_needed": 9}))
    table = Table(setting="", rows=rows, trends=[], sentences=[])
    text = answer(template.model_copy(update={"tables": [table]}))
    kinds = (("better", "not worse"), ("worse",))
    good, bad = ({64 + i for i, verdict in enumerate(verdicts) if verdict in kind} for kind in kinds)
    for word, lengths in (("Yes", good), ("No,", bad)):
        sentences = [part for part in re.split(r"(?<=\.) (?=[A-Z])", text) if part.startswith(word)]
        assert len(sentences) == bool(lengths)
        named = {int(number) for part in sentences for number in re.findall(r"\b6\d\b", part.split("times")[0])}
        assert named <= lengths and bool(named) == bool(lengths)
    assert not re.search(r"\bnot worse\b|\bno .* not\b|nan", text)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(("status", "ended"), [("running", 9), ("interrupted", 9), (None, 9), ("failed", 10)])
def test_an_unfinished_sweep_says_so_in_its_answer_and_a_failed_run_is_a_run_that_has_ended(
    store: Path, status: str | None, ended: int
) -> None:
    synthetic.experiment(store, lengths=(64,))
    assert compare(look_at(store)).answer.startswith("Yes, at 64 tokens")
    (folder,) = store.glob("dsa-L64-s46-*")
    if status is None:  # not begun
        shutil.rmtree(folder)
    else:
        resealed.edit(folder / "run.json", status=status)
    found = compare(look_at(store))
    so_far = "" if ended == 10 else "Unfinished (9 of 10 runs): "
    assert found.answer.startswith(f"{so_far}Yes, at 64 tokens")
    said = [line for line in found.warnings if line.startswith("The sweep is unfinished: 9 of 10 runs have ended")]
    assert len(said) == bool(so_far)
    assert compare(look_at(store, where="seed < 46")).answer.startswith("Unfinished" if status is None else "Yes")
