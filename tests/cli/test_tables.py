"""The table on stdout: as wide as the terminal, no number cut, plain text without a terminal."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dsabench.analysis.results_table import experiment_table, not_averaged
from dsabench.analysis.variants import display_name
from dsabench.cli.views.results_table_text import experiment_lines


def run(kind: str, length: int, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    """One row of the store; dense selects nothing and so has no mass recall."""
    selects = {} if kind == "dense" else {"mass_recall": 0.831, "mass_recall_chance": 0.5}
    measured = {"val_loss": loss, "val_accuracy": 0.234, "step_ms": 4.567, "unigram_loss": 6.4}
    name = {"run_id": f"{kind}-L{length}-s{seed}-{len(other)}", "attention": kind, "length": length, "seed": seed}
    return {**name, "status": "done", **measured, **selects, **other}


def sweep(kinds: tuple[str, ...] = ("dense", "dsa"), lengths: tuple[int, ...] = (64, 128)) -> list[dict[str, Any]]:
    return [
        run(kind, length, seed, 4.5 + 0.1 * i + 0.01 * (1 + i) * seed)
        for length in lengths
        for i, kind in enumerate(kinds)
        for seed in (1, 2, 3)
    ]


def printed(rows: list[dict[str, Any]], **console: Any) -> str:
    runs = pd.DataFrame(rows).convert_dtypes()
    out = io.StringIO()
    experiment_lines(experiment_table(runs), Console(file=out, **console), not_averaged(runs))
    return out.getvalue()


def test_the_rows_say_what_the_runs_did() -> None:
    lines = [line.split() for line in printed(sweep()).splitlines()]
    assert ["64", "dense", "3", "4.520+-0.010", "-", "23.4", "4.57", "-"] in lines
    assert ["DSA", "3", "4.640+-0.020", "+0.120+-0.010", "23.4", "4.57", ".83", "(.50)"] in lines


def test_one_seed_has_no_spread_and_an_unpaired_seed_no_difference() -> None:
    text = printed([run("dense", 64, 1, 4.0), run("dsa", 64, 2, 4.5)])
    assert "+-" not in text
    assert re.search(r"DSA +1 +4\.500 +- ", text)


def test_what_the_numbers_mean_is_said_and_no_verdict_given() -> None:
    text = printed(sweep())
    for words in ("+-: standard deviation over seeds", "Unigram baseline: 6.400", "verdicts: dsabench compare"):
        assert words in text
    assert "not worse" not in text


def test_unfinished_runs_are_counted_and_listed() -> None:
    rows = sweep()
    rows[0] |= {"status": "failed", "val_loss": math.nan, "error": "loss is NaN at step 7\nTraceback"}
    rows += [run("dsa", 256, seed, math.nan, status="running") for seed in range(20)]
    text = printed(rows)
    assert re.search(r"64 +dense +2/3 ", text)
    assert re.search(r"256 +DSA +0/20 +- +- +- +- +-", text)
    assert "dense-L64-s1-0 failed: loss is NaN at step 7\n" in text
    assert "and 11 more" in text
    assert "Traceback" not in text


def test_a_leak_is_marked() -> None:
    rows = [row | {"leak": row["attention"] == "dsa"} for row in sweep()]
    text = printed(rows)
    assert "DSA LEAK" in text
    assert "LEAK: " in text


def test_without_a_terminal_it_is_plain_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = printed(sweep(("dense", "dsa", "a_variant_with_a_very_long_name")))
    assert text.isascii()
    assert text.count("a_variant_with_a_very_long_name") == 2, "no room is to be saved: a row of each length has it"
    assert "[1]" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_number_is_cut_at_any_width(terminal: bool, width: int) -> None:
    text = printed(sweep(lengths=(64, 131072)), width=width, force_terminal=terminal)
    assert "\u2026" not in text and "..." not in text
    assert text.count("4.520+-0.010") == 2
    left_out = "left out at 40 columns: minus dense" in " ".join(text.split())
    assert text.count("+0.120+-0.010") == (0 if left_out else 2)
    assert left_out == (terminal and width == 40)


names = st.from_regex(r"[a-z][a-z_]{0,30}", fullmatch=True).filter(lambda name: name != "dense")


@settings(deadline=None, max_examples=8)
@given(
    st.lists(names, min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([0.125, 0.25, 0.5]), min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_it_fits_eighty_columns_and_every_variant_can_be_told(
    kinds: list[str], ratios: list[float], leak: bool
) -> None:
    rows = [
        run(kind, 131072, seed, 4.5 + seed / 100, leak=leak, **{"attention.top_k_ratio": ratio}, run_id=str(i))
        for i, (kind, ratio, seed) in enumerate((k, r, s) for k in ["dense", *kinds] for r in ratios for s in (1, 2))
    ]
    text = printed(rows, width=80, force_terminal=True, color_system=None)
    notes = text.split("val loss: ")[0]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    body = [line for line in notes.splitlines() if "+-" in line]
    variants = list(experiment_table(pd.DataFrame(rows))["variant"])
    assert len(body) == len(variants)
    labels = [re.split(r" +\d/?\d* +\d\.\d{3}\+-", line[7:])[0].strip() for line in body]
    assert len(set(labels)) == len(labels)
    for label, variant in zip(labels, variants, strict=True):
        number = re.search(r"\[\d+\]", label)
        spelt = re.findall(rf"^{re.escape(number[0])} (.*)$", notes, re.M)[0] if number else label
        assert spelt == display_name(variant) + (" LEAK" if leak else "")


def test_nothing_to_show_is_said() -> None:
    assert "No run has a result." in printed([])


def test_names_are_those_of_the_comparison() -> None:
    """One variant has one name, in the table after a sweep as in `dsabench compare`."""
    rows = [row | {"attention.top_k_ratio": ratio} for ratio in (0.25, 0.5) for row in sweep(("dsa",))]
    rows = [{**row, "run_id": str(i)} for i, row in enumerate(rows)]
    text = printed(rows)
    assert all(f" {name} " in text for name in ("DSA k=0.25L", "DSA k=0.5L"))
    narrow = printed(rows, width=74, force_terminal=True, color_system=None)
    assert re.findall(r"^\[\d\] (.*)$", narrow, re.M) == ["DSA k=0.25L", "DSA k=0.5L"]
    assert "dsa" not in text.replace("dsabench", "")


def of_a_task(kind: str, seed: int, accuracy: float) -> dict[str, Any]:
    found = {} if kind == "dense" else {"target_recall_best": 0.75, "target_recall_chance": 0.25}
    task = {"task_accuracy": accuracy, "val_accuracy": accuracy, "chance_accuracy": 0.125, "unigram_loss": 2.079}
    return run(kind, 64, seed, 1.5, **task, **found)


def test_a_task_shows_target_recall_with_its_chance_and_says_what_is_counted() -> None:
    text = printed([of_a_task(kind, seed, 0.5) for kind in ("dense", "dsa") for seed in (1, 2)])
    lines = [line.split() for line in text.splitlines()]
    assert ["DSA", "2", "1.500+-0.000", "+0.000+-0.000", "50.0", "4.57", ".75", "(.25)"] in lines
    assert "val loss: nats per answer, mean over seeds" in text
    assert "Floor: 2.079 nats per answer, 12.5 % right." in text
    assert "recall: share of targets in the best layer's selection" in text
    for word in ("Unigram", "per token", "full attention"):
        assert word not in text
    both = printed([of_a_task("dsa", 1, 0.5), *sweep(("dsa",), (128,))])
    for words in ("nats per token or answer", "Unigram baseline: 6.400 nats per token", "full attention", "of targets"):
        assert words in both.replace("share of targets", "of targets")
