"""A comparison as tables of text: the cells that terminal, Markdown, LaTeX and report share; and as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from dsabench.analysis.comparison import Comparison, SearchCost, Table
from dsabench.analysis.comparison_row import Estimate, Row, mean_fields, reads_other_than_k
from dsabench.analysis.grid import Grid
from dsabench.analysis.size_tables import size_grids, size_meaning
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import display_name
from dsabench.analysis.wording import (
    RECALL,
    digits_of,
    doubted,
    half_width,
    interval,
    mean_lines,
    meaning,
    number,
    p_value,
    recall,
    trend_lines,
)
from dsabench.metrics import GAP, METRICS
from dsabench.plain import visible
from dsabench.store.table_file import inert


def verdict_grid(table: Table, found: Comparison) -> Grid:
    """The verdicts of a table: both means, the paired difference, p and what may be said."""
    digits = digits_of(found.metric)
    rows = [
        (
            length,
            display_name(row.variant, table.setting),
            str(row.difference.n),
            number(row.baseline_mean, f".{digits}f"),
            number(row.variant_mean, f".{digits}f"),
            interval(row.difference, digits),
            p_value(row.p_adjusted),
            _verdict(row),
        )
        for length, row in _by_length(table.rows)
    ]
    baseline = display_name(found.baseline)
    headings = ("length", "variant", "pairs", baseline, "its mean", "difference [95 % CI]", "p", "verdict")
    return Grid("Verdicts", headings, rows, ("variant", "verdict"))


def cost_grid(table: Table) -> Grid:
    """What each variant costs against the baseline, and the difference at equal cost; the keys that a query reads where
    they say more than k."""
    reads = reads_other_than_k(table.rows)
    rows = [
        (
            length,
            display_name(row.variant, table.setting),
            doubted(number(row.time_ratio, ".2f"), row.time_doubt),
            number(row.time_spread, ".2f"),
            number(row.flops_ratio, ".2f"),
            number(row.memory_ratio, ".2f"),
            half_width(row.equal_flops),
            doubted(half_width(row.equal_seconds), row.time_doubt),
            half_width(row.gap),
            *((number(row.mean("k_effective"), ",.0f"),) if reads else ()),
            recall(row.mean),
        )
        for length, row in _by_length(table.rows)
    ]
    ratios = ("step\ntime x", "spread", "FLOPs\nx", "memory\nx")
    equal = ("at equal\nFLOPs", "at equal\nseconds")
    keys = (KEYS_READ,) if reads else ()
    headings = ("length", "variant", *ratios, *equal, METRICS[GAP].title, *keys, RECALL)
    return Grid("Costs", headings, rows, ("variant",))


def ladder_grid(found: Comparison) -> Grid:
    """The verdicts of all rungs of a ladder, one under the other, with the mass recall."""
    digits = digits_of(found.metric)
    several = len({row.length for row in found.rows}) > 1
    rows = []
    for table in found.tables:
        rung = next((rung for rung in found.rungs if f"{table.setting} ".startswith(f"{rung} ")), table.setting)
        for i, (length, row) in enumerate(_by_length(table.rows)):
            rows.append(
                (
                    "" if i else rung,
                    *((length,) if several else ()),
                    display_name(row.variant, table.setting),
                    number(row.baseline_mean, f".{digits}f"),
                    number(row.variant_mean, f".{digits}f"),
                    interval(row.difference, digits),
                    _verdict(row, needed=False),
                    recall(row.mean),
                )
            )
    head = ("rung", *(("length",) if several else ()), "variant", display_name(found.baseline), "its\nmean")
    pairs = sorted({row.difference.n for row in found.rows})
    title = f"The ladder; pairs of a rung: {pairs[0] if len(pairs) == 1 else f'{pairs[0]} to {pairs[-1]}'}"
    grid = (*head, "difference [95 % CI]", "verdict", RECALL)
    return Grid(title, grid, rows, ("rung", "variant", "verdict"))


KEYS_READ = METRICS["k_effective"].title.replace(" ", "\n")

LADDER_MEANING = "rung: keeps what the rungs above it changed; the ladder of the sweep's config says what each changes."


def best_settings_grid(found: Comparison) -> Grid:
    """Best settings, or best learning rate, against the baseline's best."""
    rows = [
        (
            str(best.length),
            display_name(best.variant),
            _settings(best.variant_settings) or f"{best.variant_rate:g} of {len(best.variant_rates)}",
            _settings(best.baseline_settings) or f"{best.baseline_rate:g} of {len(best.baseline_rates)}",
            str(best.difference.n),
            interval(best.difference, digits_of(found.metric)),
            p_value(best.p),
        )
        for best in found.best_rates
    ]
    headings = ("length", "variant", "its best", f"{display_name(found.baseline)}'s best", "pairs")
    what = "settings" if any(best.variant_search for best in found.best_rates) else "learning rate"
    left = ("variant", *headings[2:4]) if what == "settings" else ("variant",)
    return Grid(f"Best {what} against best {what}", (*headings, "difference [95 % CI]", "p"), rows, left)


def search_grid(found: Comparison) -> Grid:
    """What each search cost; without rows where nothing was searched."""
    costs: dict[tuple[int, str], SearchCost] = {}
    for best in found.best_rates:
        sides = ((found.baseline, best.baseline_search), (best.variant, best.variant_search))
        costs |= {(best.length, display_name(who)): cost for who, cost in sides if cost is not None}
    rows = [
        (
            str(length),
            variant,
            str(cost.trials),
            str(cost.failed),
            f"{cost.tokens:,}",
            number(cost.flops, ".3g"),
            number(cost.seconds, ",.0f"),
        )
        for (length, variant), cost in costs.items()
    ]
    headings = ("length", "variant", "trials", "failed", "tokens", "FLOPs", "seconds")
    return Grid("What each search cost", headings, rows, ("variant",))


def _settings(settings: Mapping[str, Any]) -> str:
    """`learning_rate=0.003 indexer.warmup_share=0.2`: without the section, where that leaves the names distinct."""
    short = {path: path.partition(".")[2] for path in settings}
    names = list(short.values())
    return " ".join(f"{short[p] if names.count(short[p]) == 1 else p}={value}" for p, value in settings.items())


BEST_RATES_MEANING = (
    "Best: of the rates tried, by the mean validation loss that is then compared, so both sides are optimistic; "
    "p is not corrected."
)
BEST_SETTINGS_MEANING = (
    "Best: of the settings tried, by the validation loss of one seed that is not compared; p is not corrected."
)


def notes(found: Comparison, ladder_alone: bool = False, explained: bool = True) -> list[str]:
    """The lines under the tables; `ladder_alone`: under a ladder's table, when those of its rungs are not shown;
    `explained`: with what the columns mean."""
    lines = list(meaning(found, ladder_alone)) if found.tables and explained else []
    if found.rungs and explained:
        lines.insert(0, LADDER_MEANING)
    if explained:
        lines += size_meaning(found)
    if found.best_rates and explained:
        searched = found.best_rates[0].variant_search is not None
        lines.append(BEST_SETTINGS_MEANING if searched else BEST_RATES_MEANING)
    return [*lines, *(f"Note: {note}." for note in found.notes)]


def frame(found: Comparison) -> pd.DataFrame:
    """One row a row of the comparison, its estimates flattened: `difference` to difference_n, difference_mean, ..."""
    flat = []
    for table in found.tables:
        for row in table.rows:
            values: dict[str, Any] = {"setting": table.setting, "metric": found.metric, "baseline": found.baseline}
            for name in (*Row.model_fields, *mean_fields()):
                value: Any = row.mean(name) if name in mean_fields() else getattr(row, name)
                if isinstance(value, Estimate):
                    values |= {f"{name}_{part}": number for part, number in value.model_dump().items()}
                else:
                    values[name] = " ".join(map(str, value)) if name == "seeds" else value
            flat.append(values | {"margin": found.margin})
    return pd.DataFrame(flat)


def as_csv(found: Comparison) -> str:
    """The rows as CSV with a header; an unknown number is an empty cell, text is made `inert`."""
    rows = frame(found)
    texts = {
        name: [visible(text) for text in rows[name]] for name in ("setting", "variant", "baseline") if name in rows
    }
    return inert(rows.assign(**texts)).to_csv(index=False)


def as_markdown(found: Comparison) -> str:
    """The tables in GitHub's Markdown, with their notes."""
    out = ["### " + _markdown(f"{found.metric} of {found.scope}, against {display_name(found.baseline)}"), ""]
    out += [f"**{_markdown(f'WARNING: {line}.')}**\n" for line in found.warnings]
    out += [f"**{_markdown(line)}**\n" for line in found.answer.split("\n")]
    for grid, below in _grids(found):
        head = [heading.replace("\n", " ") for heading in grid.headings]
        marks = [":--" if heading in grid.left else "--:" for heading in grid.headings]
        cells = [map(_markdown, head), marks, *(map(_markdown, row) for row in grid.rows)]
        out += [f"**{_markdown(grid.title)}**", ""]
        out += ["| " + " | ".join(row) + " |" for row in cells]
        out += ["", *(f"- {_markdown(line)}" for line in below), ""]
    out += [f"- {_markdown(line)}" for line in notes(found)]
    return "\n".join(out).rstrip() + "\n"


def as_latex(found: Comparison) -> str:
    """The tables in LaTeX for the booktabs package, one `table` each, with their notes as comments."""
    out = [f"% {visible(f'WARNING: {line}.')}" for line in found.warnings]
    out += [f"% {visible(line)}" for line in found.answer.split("\n")]
    for grid, below in _grids(found):
        marks = "".join("l" if heading in grid.left else "r" for heading in grid.headings)
        head = " & ".join(_latex(heading.replace("\n", " ")) for heading in grid.headings)
        out += ["\\begin{table}", "\\centering", f"\\caption{{{_latex(grid.title)}: {_latex(found.scope)}}}"]
        out += [f"\\begin{{tabular}}{{{marks}}}", "\\toprule", rf"{head} \\", "\\midrule"]
        out += [" & ".join(map(_latex, row)) + r" \\" for row in grid.rows]
        out += ["\\bottomrule", "\\end{tabular}", "\\end{table}", *(f"% {visible(line)}" for line in below), ""]
    out += [f"% {visible(line)}" for line in notes(found)]
    return "\n".join(out).rstrip() + "\n"


def _grids(found: Comparison) -> Iterator[tuple[Grid, list[str]]]:
    if found.rungs and found.tables:
        yield ladder_grid(found), []
    for table in found.tables:
        suffix = f" ({table.setting})" if table.setting else ""
        verdicts, costs = verdict_grid(table, found), cost_grid(table)
        yield (
            verdicts._replace(title=verdicts.title + suffix),
            [*table.sentences, *mean_lines(table, found.baseline), *trend_lines(table)],
        )
        yield costs._replace(title=costs.title + suffix), []
    yield from size_grids(found)
    if found.best_rates:
        yield best_settings_grid(found), []
    if (searches := search_grid(found)).rows:
        yield searches, []


def _by_length(rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """The rows, each length named once."""
    previous = None
    for row in rows:
        yield "" if row.length == previous else str(row.length), row
        previous = row.length


def _verdict(row: Row, needed: bool = True) -> str:
    """What may be said, of an inconclusive row with how many seeds are `needed`, of none with the reason."""
    if row.withheld:
        return f"no verdict: {row.withheld}"
    if row.verdict != "inconclusive" or not needed:
        return row.verdict
    if row.seeds_needed is not None:
        return f"inconclusive ({row.seeds_needed} seeds)"
    return f"inconclusive ({MIN_PAIRS}+ seeds)" if row.difference.n < MIN_PAIRS else "inconclusive"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`\[\]<>#])", r"\\\1", visible(text)).replace("+-", "\u00b1")


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\ensuremath{<}",
          ">": r"\ensuremath{>}", **{c: "\\" + c for c in "&%$#_{}"}}  # fmt: skip


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in visible(text))
    return re.sub(r"(?<![\w.])-(?=[\d.])", r"\\ensuremath{-}", escaped.replace("+-", r"\,\ensuremath{\pm}\,"))
