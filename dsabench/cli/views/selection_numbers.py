"""`visualize-selection` in the terminal: the numbers of the layers beside their chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console

from dsabench.cli.views.text_table import Column, print_table, say
from dsabench.metrics import METRICS
from dsabench.selection.numbers import FIRST, Numbers


def print_numbers(numbers: Numbers, console: Console) -> None:
    """Print a line a layer, their mean, and what chance would give; of a task with its targets."""
    tasks = "target_recall_best" in numbers
    columns = (
        (Column("recall"), "mass_recall", ".2f"),
        (Column("best", drop=3), "mass_recall_best", ".2f"),
        (Column("oracle"), "oracle_overlap", ".2f"),
        (Column("nearest"), "nearest_kept", ".2f"),
        (Column("targets"), "target_recall", ".2f") if tasks else (Column(f"first {FIRST}"), "first_kept", ".2f"),
        (Column("previous", drop=1), "previous_kept", ".2f"),
        (Column("entropy", drop=2), "attention_entropy", ".2f"),
        (Column("of score", drop=2), "score_entropy", ".2f"),
        (Column("never"), "never_selected", "g"),
    )

    def row(name: str, values: Numbers, ending: str = "") -> list[str]:
        cells = [name]
        for _, column, form in columns:
            value = values.get(f"{column}{ending}", values.get(f"{column}_uniform") if ending else None)
            form = ".1f" if form == "g" and value is not None and value != int(value) else form
            cells.append("-" if value is None else format(value, form))
        return cells

    rows = [row(str(values["layer"]), values) for values in numbers["layers"]]
    rows += [row("mean", numbers["mean"])] if len(numbers["layers"]) > 1 else []
    rows.append(row("rand.", numbers["mean"], "_chance"))
    print_table(console, [Column("layer", left=True), *(column for column, _, _ in columns)], rows)
    first = "targets, those of all answers that are asked for" if tasks else f"first {FIRST} of the window"
    meaning = (
        f"recall: {METRICS['mass_recall'].meaning}; best: on as many best keys. Share of these keys that is "
        f"selected: oracle, the best ones; nearest; {first}; previous, those of the query before. "
        "entropy: of the attention, and of softmax(index score) on the selected keys, nats. never: keys that no query "
        f"selected. rand.: random keys, even attention. Means over queries from k = {_ks(numbers)} on"
        + (", of targets over all." if tasks else ".")
    )
    say(console, meaning)
    if len(numbers["layers"]) > 1:
        say(console, *_overlap(numbers["layer_overlap"]))
    if tasks:
        best, chance = numbers["target_recall_best"], numbers["mean"]["target_recall_chance"]
        layer = numbers["target_recall_best_layer"]
        say(console, f"Targets: layer {layer} selects most, {best:.2f} (chance {chance:.2f})")


def print_distances(numbers: Numbers, console: Console) -> None:
    """Print distances from query to key in a layer: per cent of the selected keys, of random ones, of the attention."""
    distance = numbers["distance"]
    if distance is None:
        return
    bins = distance["histogram"]
    say(console, f"Layer {numbers['layer']}: distance from query to key, from each number up to the next, per cent")
    rows = [
        [title, *("-" if one[name] is None else f"{100 * one[name]:.0f}" for one in bins)]
        for title, name in (("selected", "share"), ("random", "share_chance"), ("attention", "share_attention"))
    ]
    columns = [Column(str(one["from"]), drop=len(bins) - i) for i, one in enumerate(bins)]
    print_table(console, [Column("keys", left=True), *columns], rows)
    quantiles, chance = distance["quantiles"], distance["quantiles_chance"]
    say(
        console,
        f"Half of the selected keys: within {quantiles['0.5']} tokens (random {chance['0.5']}); "
        f"nine tenths: {quantiles['0.9']} ({chance['0.9']})",
    )


def _overlap(pairs: list[Numbers]) -> Iterator[str]:
    known = [pair for pair in pairs if pair["overlap"] is not None]
    if not known:
        return
    low, high = min(known, key=lambda pair: pair["overlap"]), max(known, key=lambda pair: pair["overlap"])
    mean, chance = (float(np.mean([pair[name] for pair in known])) for name in ("overlap", "overlap_chance"))
    yield f"Two layers select the same keys: {mean:.2f} of them (chance {chance:.2f})"
    if len(known) > 1:
        ends = (f"{pair['overlap']:.2f} (layers {pair['layers'][0]}, {pair['layers'][1]})" for pair in (low, high))
        yield f"from {' to '.join(ends)}"


def _ks(numbers: Numbers) -> str:
    ks = sorted({values["k"] for values in numbers["layers"]})
    return str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"
