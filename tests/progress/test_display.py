"""What a display shows: bars by steps, one estimate in bars and lines, nothing cut at 80 columns."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dsabench.engine.sink import Update
from dsabench.progress.display import Display
from dsabench.progress.time_left import RunParts, Timetable

PARTS = RunParts(("dsa", 0), 100, 20, 50, {"start": 1.0, "warmup": 2.0, "step": 1.0, "evaluation": 10.0})
STEP = Update(40, 100, 5.4321, 6.1234, 12_345.6)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(display: Display, width: int) -> list[str]:
    """The rows of the screen, as text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(display._rows())
    return console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined, no-any-return]


def display_of(names: list[str], width: int = 80, terminal: bool = True, **more: Any) -> tuple[Display, Clock]:
    clock = Clock()
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    table = Timetable(dict.fromkeys(names, PARTS), before=20.0)
    return Display(table, console=console, clock=clock, **more), clock


@pytest.mark.parametrize(("done", "left"), [(0, 3), (1, 2), (8, 4), (11, 1)])
def test_runs_that_are_done_already_are_counted_once_and_from_the_beginning(done: int, left: int) -> None:
    names = [f"dsa-L64-s{i}-00000000" for i in range(left)]
    display, _ = display_of(names, done=done)
    display.counted("auditing", 0.0)
    assert f"{done}/{done + left} runs" in shown(display, 80)[0]
    for name in [f"dense-L64-s{i}-00000000" for i in range(done)]:  # they pass by
        display.start(name)
        display.finish(name, "done")
    assert f"{done}/{done + left} runs" in shown(display, 80)[0]
    for i, name in enumerate(names, 1):
        display.start(name)
        display.finish(name, "done")
        assert f"{done + i}/{done + left} runs" in shown(display, 80)[0]


def said(display: Display) -> str:
    return display.console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(
        st.from_regex(r"(dense|dsa|sliding_window|mine)-L(64|16384|1048576)-s[0-9]{1,4}-[0-9a-f]{8}", fullmatch=True),
        min_size=1, max_size=5, unique=True,
    ),
    width=st.sampled_from([40, 60, 80, 100, 120, 200]),
    update=st.builds(
        Update,
        step=st.integers(0, 100_000), steps=st.just(100_000), loss=st.none() | st.floats(0, 20),
        val_loss=st.none() | st.floats(0, 20), tokens_per_second=st.none() | st.floats(1, 9e6),
        evaluated=st.none() | st.floats(0, 1),
    ),
)  # fmt: skip
def test_rows_fit_and_cut_no_detail(names: list[str], width: int, update: Update) -> None:
    display, _ = display_of(names, width)
    for name in names:
        display.start(name)(update)
    whole = r"about [\d,.]+ (s|min|hours|days) left|evaluating \d+%|loss \d+\.\d{3}|val \d+\.\d{3}|[\d,]+ tok/s"
    for row in shown(display, width):
        assert len(row) <= width
        details = re.split(r"\s{2,}", re.split(r"\d+/\d+( runs)?", row.rstrip(), maxsplit=1)[-1].strip())
        assert all(re.fullmatch(whole, detail) for detail in details if detail), row


def test_the_bar_moves_by_steps_and_evaluations() -> None:
    display, clock = display_of(["dsa-L64-s1-0a0a0a0a", "dsa-L64-s2-0a0a0a0a"])
    shares = []
    observe = display.start("dsa-L64-s1-0a0a0a0a")
    for step, evaluated in ((0, None), (0, 0.5), (0, 1.0), (10, None), (30, None), (50, None), (50, 0.5), (50, 1.0)):
        clock.now += 5.0
        observe(replace(STEP, step=step, evaluated=evaluated))
        shares.append(display.time_left.share())
    assert shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] < 0.5


def test_what_comes_before_the_first_run_is_shown() -> None:
    display, _ = display_of(["a", "b"])
    display.counted("training the tokenizer", 0.43)
    assert re.search(r"training the tokenizer .* 43%", "\n".join(shown(display, 80)))
    display.counted("auditing", 0.5)
    assert re.search(r"auditing .* 50%", "\n".join(shown(display, 80)))
    before = display.time_left.share()
    display.counted("auditing", 1.0)
    assert display.time_left.share() > before and "auditing" not in "\n".join(shown(display, 80))


def test_bars_and_lines_say_the_same_time() -> None:
    names = ["dsa-L64-s1-0a0a0a0a", "dsa-L64-s2-0a0a0a0a"]
    screens = []
    for terminal in (True, False):
        display, clock = display_of(names, terminal=terminal)
        observe = display.start(names[0])
        for step in range(0, 41, 5):
            clock.now += 31.0
            observe(replace(STEP, step=step))
        screens.append("\n".join(shown(display, 120)) if terminal else said(display).splitlines()[-1])
    times = [re.findall(r"about [\d.]+ \w+ left", screen) for screen in screens]
    assert times[0] and times[0] == times[1]
    assert screens[1].startswith("[1/2] dsa-L64-s1-0a0a0a0a  step 40/100  loss 5.432  val 6.123  12,346 tok/s  (about ")


def test_a_log_gets_a_line_now_and_then_while_it_evaluates_too() -> None:
    display, clock = display_of(["a"], terminal=False)
    observe = display.start("a", "dsa L=64 seed=1")
    for second in range(100):
        clock.now = float(second)
        observe(Update(0, 100, None, None, None, second / 100))
    lines = said(display).splitlines()
    assert len(lines) == 3 and lines[0].startswith("dsa L=64 seed=1  step 0/100  evaluating 31%  (about ")


@pytest.mark.parametrize(("quiet", "lines"), [(True, True), (False, False)])
def test_nothing_is_said_where_nobody_wants_it(quiet: bool, lines: bool) -> None:
    display, clock = display_of(["a"], terminal=False, quiet=quiet, lines=lines)
    with display:
        clock.now = 100.0
        display.start("a")(STEP)
        display.counted("encoding", 0.5)
        display.note("hear")
        display.finish("a", "done")
    assert said(display) == ""


def test_the_last_run_leaves_no_time() -> None:
    display, clock = display_of(["a", "b"], terminal=False)
    for name in ("a", "b"):
        display.start(name)(STEP)
        clock.now += 40.0
        display.finish(name, "done")
    first, last = said(display).splitlines()
    assert re.fullmatch(r"\[1/2\] a  done  \(about \d+ (s|min) left\)", first) and last == "[2/2] b  done"


def test_runs_that_are_done_already_are_counted_as_they_pass_by() -> None:
    display, _ = display_of(["c"], terminal=False, done=2)
    for name in ("a", "b", "c"):
        display.start(name)
        display.finish(name, "done")
    assert [line.split("  ")[0] for line in said(display).splitlines()] == ["[1/3] a", "[2/3] b", "[3/3] c"]
