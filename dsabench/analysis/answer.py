"""The answer of a comparison in plain words, with what it costs: one line for each variant and setting."""

from __future__ import annotations

from collections.abc import Sequence

from dsabench.analysis.comparison import Comparison, Table
from dsabench.analysis.comparison_row import Row
from dsabench.analysis.record_checks import WIN
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import display_name
from dsabench.analysis.withheld_words import withheld_words, worst_doubt
from dsabench.metrics import METRICS

_KINDS = {
    "yes": ("better", "not worse"),
    "no": ("worse",),
    "open": ("inconclusive",),
    "none": ("no verdict", "LEAK"),
}
"""What an answer makes of the verdicts."""

_COST = ("step_ms", "tokens_per_second")
"""Metrics beside which the time of a step says nothing more."""


def answer(found: Comparison, nothing: str = "", unfinished: str = "", damaged: str = "") -> str:
    """Whether each variant is as good as the baseline, where, and at what cost.

    nothing: why there is no table. unfinished: `9 of 12 runs` of a sweep have ended; each line begins with it, because
    the others may turn the answer. damaged: that runs are damaged, for the last line.

    Yes: better, or not worse by the margin. No: worse. Lengths of other verdicts are sentences of their own.
    """
    so_far = f"Unfinished ({unfinished}): " if unfinished else ""
    end = [f"{damaged}."] if damaged else []
    if not found.tables:
        return "\n".join([f"{so_far}No answer: {nothing.removeprefix('nothing to compare: ')}.", *end])
    groups = [
        (table, variant, [row for row in table.rows if row.variant == variant])
        for table in found.tables
        for variant in dict.fromkeys(row.variant for row in table.rows)
    ]
    lines = []
    for table, variant, rows in groups:
        said = " ".join(_sentences(found, sorted(rows, key=lambda row: row.length)))
        name = _name(found, table, variant, len(groups))
        lines.append(f"{name}: {said[0].lower()}{said[1:]}" if name else said)
    return "\n".join([*(so_far + line for line in lines), *end])


def _name(found: Comparison, table: Table, variant: str, n_groups: int) -> str:
    """What a line begins with, where there are several: the variant, and the setting where those are several."""
    if n_groups == 1:
        return ""
    name = display_name(variant, table.setting)
    return f"{name}, {table.setting}" if table.setting and len(found.tables) > 1 else name


def _sentences(found: Comparison, rows: list[Row]) -> list[str]:
    """The sentences about one variant: yes, no, not settled, no verdict; each with its lengths."""
    kinds = {
        "yes": ("better", "not worse"),
        "no": ("worse",),
        "open": ("inconclusive",),
        "none": ("no verdict", "LEAK"),
    }
    groups = {kind: [row for row in rows if row.verdict in verdicts] for kind, verdicts in kinds.items()}
    lengths = [row.length for row in rows]
    said = ["It depends on the length."] if groups["yes"] and groups["no"] else []
    if groups["yes"]:
        said.append(_yes(found, groups["yes"], lengths))
    if worse := groups["no"]:
        said.append(_judged(f"No,{_metric(found)}", "worse", found, worse, lengths) + _cost(found, worse) + ".")
    if groups["open"]:
        said.append(_open(found, groups["open"], lengths))
    for cause in dict.fromkeys(row.withheld for row in groups["none"]):
        mine = [row for row in groups["none"] if row.withheld == cause]
        where = "" if len(mine) == len(rows) else f" {at_lengths(mine, lengths)}"
        said.append(f"No verdict{where}: {withheld_words(mine, display_name(found.baseline))}.")
    return said


def _yes(found: Comparison, rows: list[Row], lengths: list[int]) -> str:
    better = [row for row in rows if row.verdict == "better"]
    as_good = [row for row in rows if row.verdict != "better"]
    doubt = any(check.name == WIN and check.outcome == "fail" for check in found.checks)
    lead = f"Yes,{' if it can be believed,' * bool(doubt and better)}{_metric(found)}"
    if better and as_good:
        both = f"{_claim(found, better, 'better')} {at_lengths(better, lengths)}, and {_claim(found, as_good, '')}"
        text = f"{lead.removesuffix(',')}: {both} {at_lengths(as_good, lengths)} ({_seeds(rows)})"
    else:
        text = _judged(lead, "better" if better else "", found, rows, lengths)
    end = " A win that large is a bug until shown otherwise." if doubt and better else ""
    return f"{text}{_cost(found, rows)}.{end}"


def _judged(lead: str, word: str, found: Comparison, rows: list[Row], lengths: list[int]) -> str:
    return f"{lead} {at_lengths(rows, lengths)}: {_claim(found, rows, word)} ({_seeds(rows)})"


def _claim(found: Comparison, rows: list[Row], word: str) -> str:
    """`better than dense by 0.120 nats`, or without a word `within 0.02 nats of dense`."""
    baseline = display_name(found.baseline)
    if word:
        return f"{word} than {baseline} by {_amounts(found, [abs(row.difference.mean) for row in rows])}"
    assert found.margin is not None  # no verdict of not worse without one
    margin = f"{found.margin:g} {found.margin_unit.split(' per ')[0]}"
    exploratory = ", a margin chosen after the runs" if found.margin_source.startswith("given") else ""
    if all(row.p_equivalent < found.alpha for row in rows):
        return f"within {margin} of {baseline}{exploratory}"
    return f"less than {margin} behind {baseline}{exploratory}"


def _open(found: Comparison, rows: list[Row], lengths: list[int]) -> str:
    where, few = at_lengths(rows, lengths), [row for row in rows if row.difference.n < MIN_PAIRS]
    if few:
        n = max(row.difference.n for row in few)
        there = f"there {'is' if n == 1 else 'are'} {n}"
        return f"Not settled{_metric(found)} {where}: a verdict needs at least {MIN_PAIRS} seeds, {there}."
    low, high = min(row.difference.low for row in rows), max(row.difference.high for row in rows)
    baseline, sign = display_name(found.baseline), 1 if found.lower_is_better else -1
    ends = sorted((sign * low, sign * high))
    span = f"between {_side(found, ends[0])} and {_side(found, ends[1])} than {baseline} ({_seeds(rows)})"
    if low == high == 0:
        span = f"the same as {baseline} in each of {_seeds(rows)}"
    needed = sorted(row.seeds_needed for row in rows if row.seeds_needed is not None)
    if needed:
        seeds = str(needed[0]) if needed[0] == needed[-1] else f"{needed[0]} to {needed[-1]}"
        rest = f"about {seeds} seeds would settle it"
    elif found.margin is None:
        rest = "only a margin (--margin) could show that it is as good"
    else:
        rest = "more seeds than can be named would be needed"
    return f"Not settled{_metric(found)} {where}: {span}; {rest}."


def _side(found: Comparison, worsening: float) -> str:
    return f"{_amounts(found, [abs(worsening)])} {'worse' if worsening > 0 else 'better'}"


def _cost(found: Comparison, rows: list[Row]) -> str:
    """`, at 1.3 to 1.4 times the time of a step`; why that is not known; nothing where no two times can be compared."""
    if found.metric in _COST:
        return ""
    if doubt := worst_doubt(rows):
        return f"; what a step costs is not known: {doubt}"
    ratios = sorted(row.time_ratio for row in rows if row.time_ratio > 0)
    if not ratios:
        return ""
    low, high = (f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}" for ratio in (ratios[0], ratios[-1]))
    if low == high == "1":
        return ", at the same time of a step"
    return f", at {low if low == high else f'{low} to {high}'} times the time of a step"


def _metric(found: Comparison) -> str:
    return "" if found.metric == "val_loss" else f" in {METRICS[found.metric].words},"


def _amounts(found: Comparison, sizes: Sequence[float]) -> str:
    unit, digits, factor = found.unit.split(" per token")[0].split(" per answer")[0], METRICS[found.metric].digits, 1.0
    if unit.startswith("share of"):
        unit, digits, factor = "percentage points", 1, 100.0
    low, high = (f"{factor * size:.{3 if digits is None else digits}f}" for size in (min(sizes), max(sizes)))
    return f"{low if low == high else f'{low} to {high}'} {unit}".rstrip()


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.seeds) for row in rows})
    return f"{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} seeds"


def at_lengths(rows: Sequence[Row], lengths: Sequence[int]) -> str:
    """`at 64 to 256 tokens` where no length between is missing, `at 64 and 256 tokens` where one is."""
    mine = [row.length for row in rows]
    first = list(lengths).index(mine[0])
    if len(mine) > 2 and list(lengths)[first : first + len(mine)] == mine:
        return f"at {mine[0]} to {mine[-1]} tokens"
    names = [str(length) for length in mine]
    return f"at {names[0] if len(names) == 1 else ', '.join(names[:-1]) + f' and {names[-1]}'} tokens"
