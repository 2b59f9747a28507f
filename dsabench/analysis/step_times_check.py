"""The doubts about step times: seeds of one shape that took different times, and other programs on the machine."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from dsabench.analysis.check_wording import missing
from dsabench.analysis.comparison import Check
from dsabench.analysis.pairing import machines

MOST_SPREAD = 1.25
"""Largest over smallest step time of one variant and length over seeds. Seeds do the same work; where they differ by
more, the noise is as large as what a selection costs (1.30 to 1.38 times dense in the default sweep on one H100)."""

BUSY = 0.5
"""Cores that other programs used beyond those that the run left idle: threads that wait for each other then stand
still."""

NAME = "Step times"


class Times(NamedTuple):
    """What is known of the step times, by (length, variant)."""

    spread: pd.Series[float]
    """Largest over smallest over seeds, the largest of the machines; only where two seeds recorded it."""

    load: pd.Series[float]
    """Cores by which other programs cut into a run, the most of its seeds; only where a run recorded their load."""

    def doubt(self, shapes: list[tuple[int, str]]) -> str:
        """Why times of these shapes say little, in words; empty when nothing speaks against them."""
        spread, load = self.of(shapes), float(self.load.reindex(shapes).max())
        said = []
        if spread > MOST_SPREAD:
            said.append(f"step times of one shape differ up to {spread:.2f}-fold between seeds")
        if load > BUSY:
            said.append(f"other programs took up to {load:.1f} of the cores that the run needed")
        return " and ".join(said)

    def of(self, shapes: list[tuple[int, str]]) -> float:
        """The largest spread of these shapes; NaN when none is known."""
        return float(self.spread.reindex(shapes).max())


def step_times(finished: pd.DataFrame) -> Times:
    """The spreads and loads of the finished runs of `label_variants`."""
    runs = finished[["length", "variant"]].assign(
        machine=machines(finished), time=_numbers(finished, "step_ms"), load=_overload(finished)
    )
    timed = runs[runs["time"] > 0].groupby(["length", "variant", "machine"])["time"]
    spread = (timed.max() / timed.min())[timed.size() > 1].groupby(["length", "variant"]).max()
    load = runs[runs["load"].notna()].groupby(["length", "variant"])["load"].max()
    return Times(spread, load)


def check_step_times(done: pd.DataFrame) -> Check:
    """Whether the step times of the finished runs can be compared."""
    times = step_times(done)
    if times.spread.empty and times.load.empty:
        return Check(name=NAME, outcome="not recorded", text="No variant has the step times of two seeds.")
    spread, load = float(times.spread.max()), float(times.load.max())
    shapes = [(int(length), str(variant)) for length, variant in {*times.spread.index, *times.load.index}]
    if doubt := times.doubt(shapes):
        doubted = {shape for shape in shapes if times.doubt([shape])}
        rows = [
            (int(length), variant) in doubted for length, variant in zip(done["length"], done["variant"], strict=True)
        ]
        text = f"{doubt[0].upper()}{doubt[1:]}: their ratios stand in brackets, and say little."
        return Check(name=NAME, outcome="warn", text=text, run_ids=tuple(done.loc[rows, "run_id"]))
    said = [f"seeds of one shape took times within a factor of {spread:.2f}"] if math.isfinite(spread) else []
    if math.isfinite(load):
        said.append("other programs left the runs the cores that they needed")
    unknown = int(_numbers(done, "step_ms").isna().sum())
    text = f"{' and '.join(said)[0].upper()}{' and '.join(said)[1:]}; more than {MOST_SPREAD:g} would be doubted."
    return Check(name=NAME, outcome="ok", text=text + missing(unknown))


def _overload(runs: pd.DataFrame) -> pd.Series[float]:
    """Cores of other programs' mean load beyond those that a run leaves idle; NaN where the run does not say."""
    load, cores, threads = (
        _numbers(runs, column) for column in ("other_load", "environment.cpu_count", "environment.threads")
    )
    device = runs.get("environment.device", pd.Series("cpu", index=runs.index)).astype("string").fillna("cpu")
    threads = threads.where(device.str.startswith("cpu"), 1.0)  # beside a GPU one thread launches its work
    idle = (cores - threads).clip(lower=0).fillna(0)
    return load - idle


def _numbers(runs: pd.DataFrame, column: str) -> pd.Series[float]:
    values = runs[column] if column in runs else pd.Series(math.nan, index=runs.index)
    numbers: pd.Series[float] = pd.to_numeric(values, errors="coerce").astype("Float64").astype("float64")
    return numbers.where(numbers.abs() < math.inf)
