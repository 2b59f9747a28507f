"""A comparison in words: a sentence a variant, saying no more than the verdicts allow, and what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsabench.analysis.comparison import Comparison, Table
from dsabench.analysis.comparison_row import Estimate, Row, mean_fields, reads_other_than_k
from dsabench.analysis.peak_memory import DOUBT, MOST_SPREAD
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import display_name
from dsabench.analysis.withheld_words import withheld_words, worst_doubt
from dsabench.metrics import METRICS, Metric


def sentences(
    rows: Sequence[Row],
    setting: str,
    *,
    baseline: str,
    margin: float | None,
    margin_unit: str,
    unit: str,
    metric: str,
) -> list[str]:
    """One sentence for each variant of the table of a setting, its lengths grouped by verdict."""
    said = []
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == variant]
        groups: dict[str, list[Row]] = {}
        for row in sorted(mine, key=lambda row: row.length):
            groups.setdefault(f"{row.verdict} {row.withheld}" if row.withheld else row.verdict, []).append(row)
        parts = [_part(verdict, group, margin, margin_unit, unit, baseline) for verdict, group in groups.items()]
        counts = sorted({len(row.seeds) for row in mine})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        plural = "" if counts == [1] else "s"
        named = f"{display_name(variant, setting)} against {display_name(baseline)}"
        said.append(f"{named} ({metric}, {seeds} seed{plural} a length): {'; '.join(parts)}.")
    return said


def _part(verdict: str, rows: Sequence[Row], margin: float | None, margin_unit: str, unit: str, baseline: str) -> str:
    at = _lengths([row.length for row in rows])
    spread = _spread([row.difference.mean for row in rows])
    if verdict in ("better", "worse"):
        return f"{verdict} {at} (difference {spread} {unit})"
    if verdict == "not worse":
        return f"not worse by {margin:g} {margin_unit} or more {at} (difference {spread})"
    if verdict == "LEAK":
        return f"LEAK {at}: it sees later tokens, so its numbers mean nothing"
    if rows[0].withheld:
        return f"no verdict {at}: {withheld_words(rows, display_name(baseline))} (difference {spread})"
    hint = ""
    if all(row.difference.n < MIN_PAIRS for row in rows):
        hint = f"; a verdict needs at least {MIN_PAIRS} seeds"
    elif needed := sorted(row.seeds_needed for row in rows if row.seeds_needed is not None):
        seeds = str(needed[0]) if needed[0] == needed[-1] else f"{needed[0]} to {needed[-1]}"
        hint = f"; about {seeds} seeds would settle it"
    return f"inconclusive {at} (difference {spread}{hint})"


def trend_lines(table: Table) -> Iterator[str]:
    """Each trend of a table in a line, and what speaks against reading it as one over length."""
    for trend in table.trends:
        name = display_name(trend.variant, table.setting)
        confounded = f" Confounded: {trend.confounded}." if trend.confounded else ""
        lengths = f"{trend.lengths[0]} to {trend.lengths[-1]}"
        if trend.slope.n < MIN_PAIRS:
            yield f"{name}: a trend over length needs {MIN_PAIRS} seeds that have every length.{confounded}"
        else:
            yield (
                f"{name}: each doubling of the length ({lengths}) changes the difference by "
                f"{interval(trend.slope, 4)}, p = {p_value(trend.p)}.{confounded}"
            )


def mean_lines(table: Table, baseline: str) -> Iterator[str]:
    """The means that stand beside a comparison on both sides, such as the task accuracy: of each variant, beside the
    baseline's and chance or floor, a line a length; a single line where all are the same and there is no chance."""
    for name, metric in ((name, field.metric) for name, field in mean_fields().items() if field.side == "b"):
        known = [row for row in table.rows if math.isfinite(row.mean(metric.name))]
        texts = {_mean(metric, row.mean(of)) for row in known for of in (name, metric.name)}
        if len(texts) == 1 and not metric.chance:
            yield f"{metric.words[0].upper()}{metric.words[1:]}: {texts.pop()} ({metric.meaning})."
            continue
        for length in sorted({row.length for row in known}):
            mine = [row for row in known if row.length == length]
            ours = [
                f"{display_name(row.variant, table.setting)} {_mean(metric, row.mean(metric.name))}" for row in mine
            ]
            chance = _mean(metric, mine[0].mean(metric.chance))
            yield (
                f"{metric.words[0].upper()}{metric.words[1:]} at {length} tokens: {display_name(baseline)} "
                f"{_mean(metric, mine[0].mean(name))}, {', '.join(ours)}"
                + (f" ({METRICS[metric.chance].title} {chance})." if metric.chance else ".")
            )


def _mean(metric: Metric, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}" if metric.unit.startswith("share of") else metric.text(value)


def meaning(found: Comparison, ladder_alone: bool = False) -> Iterator[str]:
    """The columns of the tables, the margin and the corrections in words, for under every table; `ladder_alone`: of the
    table of a ladder, which has neither p nor costs."""
    better = "lower" if found.lower_is_better else "higher"
    yield (
        f"difference: variant minus {display_name(found.baseline)} of the same seed, {found.unit}, {better} is better; "
        "with its paired t interval."
    )
    if not ladder_alone:
        yield "p: two-sided paired t test, Holm's correction over the lengths of a variant."
    if found.margin is not None:
        yield (
            f"not worse: by less than the margin of {found.margin:g} {found.margin_unit} ({found.margin_source}); "
            f"one-sided t test at {found.alpha:g}, uncorrected; said before worse."
        )
    else:
        yield f"not worse: no margin ({found.margin_source}), so this verdict is not given; --margin sets one."
    rows = found.rows
    if any(row.verdict == "inconclusive" for row in rows):
        yield (
            "inconclusive: no proof of equality. (n seeds) would settle it with 80 % power if mean and spread stay; "
            f"fewer than {MIN_PAIRS} pairs get no verdict."
        )
    if any(row.verdict == "no verdict" for row in rows):
        yield "no verdict: whatever the numbers, they would prove nothing; the reason stands beside it."
    if not ladder_alone:
        yield from _costs(rows)
    yield from recall_lines(row.mean for row in rows)


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    yield "x: variant over baseline: step time, FLOPs of the whole run, peak memory."
    yield "spread: step time of one attention over seeds, largest over smallest; the larger of variant and baseline."
    if doubt := worst_doubt(rows):
        yield f"(in brackets): it rests on step times, and says little: {doubt}."
    spread = max((row.memory_spread for row in rows if math.isfinite(row.memory_spread)), default=1.0)
    if spread > MOST_SPREAD:
        yield f"memory: the peak of one attention differs up to {spread:.2f}-fold between seeds: {DOUBT}."
    yield from _equal_cost(rows)
    yield "gap: difference of (validation - training loss); negative: less overfitting."
    if reads_other_than_k(rows):
        yield f"keys read: {METRICS['k_effective'].meaning}."
    if any(estimate.n > 1 for row in rows for estimate in (row.equal_flops, row.equal_seconds, row.gap)):
        yield "+-: half of the 95 % interval of a mean over pairs (after a sweep it is a standard deviation)."


def _equal_cost(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.equal_flops.n or row.equal_seconds.n for row in rows):
        shares = [row.equal_seconds_share for row in rows if math.isfinite(row.equal_seconds_share)]
        cut = f", down to {min(shares):.0%} of its steps," if shares and min(shares) < 0.995 else ""
        yield (
            "at equal FLOPs, seconds: difference of val_loss when the cheaper run of the pair had ended. The dearer "
            f"one is read in mid-schedule{cut} and looks worse than a run planned for that cost."
        )
    fewer = {
        (row.length, row.variant, cost): (estimate.n, row.difference.n)
        for row in rows
        for cost, estimate in (("FLOPs", row.equal_flops), ("seconds", row.equal_seconds))
        if 0 < estimate.n < row.difference.n
    }
    if fewer:
        (length, variant, cost), (n, of) = min(fewer.items(), key=lambda item: item[1][0] / item[1][1])
        yield (
            f"at equal {cost}: {n} of {of} pairs of {display_name(variant)} at {length} tokens"
            + (f" (and fewer than all in {len(fewer) - 1} more of these cells)" if len(fewer) > 1 else "")
            + "; the others' evaluations do not say it, or their machines differ."
        )


def digits_of(metric: str) -> int:
    """Digits after the point of a metric that can be compared."""
    return METRICS[metric].digits or 0


def number(value: float, form: str) -> str:
    """The value, or - when it is not known."""
    return format(value, form) if math.isfinite(value) else "-"


def doubted(text: str, doubt: object) -> str:
    """The text in brackets when there is a doubt about it."""
    return f"({text})" if doubt and text != "-" else text


def interval(estimate: Estimate, digits: int) -> str:
    """`-0.002 [-0.006, +0.002]`; without brackets for one pair, - for none."""
    if not estimate.n:
        return "-"
    mean = f"{estimate.mean:+.{digits}f}"
    if not math.isfinite(estimate.low):
        return mean
    return f"{mean} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def half_width(estimate: Estimate) -> str:
    """`+0.006+-0.004`."""
    if not estimate.n:
        return "-"
    half = f"+-{(estimate.high - estimate.low) / 2:.3f}" if math.isfinite(estimate.high) else ""
    return f"{estimate.mean:+.3f}{half}"


RECALL = f"{METRICS['mass_recall'].title}\n(chance)"
"""The heading above `recall`."""


def recall(mean: Callable[[str], float]) -> str:
    """`.95 (.69)`: the recall of a row and its chance; mean: of a metric over the row's runs, by the metric's name."""
    metric = _recall_of(mean)
    if metric is None:
        return "-"
    return f"{mean(metric.name):.2f} ({number(mean(metric.chance), '.2f')})".replace("0.", ".")


def recall_lines(rows: Iterable[Callable[[str], float]]) -> Iterator[str]:
    """What the recalls of these rows are."""
    for metric in dict.fromkeys(metric for metric in map(_recall_of, rows) if metric is not None):
        yield f"{metric.title}: {metric.meaning} (chance: at random)."


def _recall_of(mean: Callable[[str], float]) -> Metric | None:
    """The recall of a task's targets in the best layer where a row has it, else that of attention mass."""
    known = (name for name in ("target_recall_best", "mass_recall") if math.isfinite(mean(name)))
    return METRICS.get(next(known, ""))


def p_value(value: float) -> str:
    """Three digits, `<.001` below them."""
    if not math.isfinite(value):
        return "-"
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _lengths(lengths: Sequence[int]) -> str:
    names = [str(length) for length in lengths]
    joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"at {joined} tokens"


def _spread(values: Sequence[float]) -> str:
    low, high = f"{min(values):+.3f}", f"{max(values):+.3f}"
    return low if low == high else f"{low} to {high}"
