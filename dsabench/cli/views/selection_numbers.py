"""`visualize-selection` in the terminal: the numbers of the layers beside their chance. 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dsabench.cli.views.marked_text import WIDTH, prose, wrapped
from dsabench.metrics import METRICS
from dsabench.selection.numbers import FIRST, Numbers


def number_lines(numbers: Numbers) -> Iterator[str]:
    """One line a layer, their mean, and what chance would give; of a task with its targets."""
    tasks = "target_recall_best" in numbers
    columns = (
        ("recall", "mass_recall", 7, ".2f"),
        ("best", "mass_recall_best", 6, ".2f"),
        ("oracle", "oracle_overlap", 8, ".2f"),
        ("nearest", "nearest_kept", 9, ".2f"),
        ("targets", "target_recall", 9, ".2f") if tasks else (f"first {FIRST}", "first_kept", 9, ".2f"),
        ("previous", "previous_kept", 10, ".2f"),
        ("entropy", "attention_entropy", 9, ".2f"),
        ("of score", "score_entropy", 10, ".2f"),
        ("never", "never_selected", 7, "g"),
    )

    def line(name: str, values: Numbers, ending: str = "") -> str:
        cells = []
        for _, column, width, form in columns:
            value = values.get(f"{column}{ending}", values.get(f"{column}_uniform") if ending else None)
            form = ".1f" if form == "g" and value is not None and value != int(value) else form
            cells.append(f"{'-' if value is None else format(value, form):>{width}}")
        return f"{name:5}" + "".join(cells)

    yield f"{'layer':5}" + "".join(f"{title:>{width}}" for title, _, width, _ in columns)
    yield "-" * WIDTH
    for values in numbers["layers"]:
        yield line(str(values["layer"]), values)
    if len(numbers["layers"]) > 1:
        yield line("mean", numbers["mean"])
    yield line("rand.", numbers["mean"], "_chance")
    first = "targets, those of all answers that are asked for" if tasks else f"first {FIRST} of the window"
    meaning = (
        f"recall: {METRICS['mass_recall'].meaning}; best: on as many best keys. Share of these keys that is "
        f"selected: oracle, the best ones; nearest; {first}; previous, those of the query before. "
        "entropy: of the attention, and of softmax(index score) on the selected keys, nats. never: keys that no query "
        f"selected. rand.: random keys, even attention. Means over queries from k = {_ks(numbers)} on"
        + (", of targets over all." if tasks else ".")
    )
    yield from (line.plain for line in wrapped(prose(meaning), WIDTH))
    if len(numbers["layers"]) > 1:
        yield from _overlap(numbers["layer_overlap"])
    if tasks:
        best, chance = numbers["target_recall_best"], numbers["mean"]["target_recall_chance"]
        yield f"Targets: layer {numbers['target_recall_best_layer']} selects most, {best:.2f} (chance {chance:.2f})"


def distance_lines(numbers: Numbers) -> Iterator[str]:
    """Distances from query to key in a layer: per cent of the selected keys, of random ones and of the attention."""
    distance = numbers["distance"]
    if distance is None:
        return
    bins = distance["histogram"]
    width = max(4, min(6, (WIDTH - 15) // len(bins)))
    starts = [str(one["from"]) for one in bins]
    yield f"Layer {numbers['layer']}: distance from query to key, from each number up to the next, per cent"
    yield f"{'':15}" + "".join(f"{start:>{width}}" for start in starts)
    for title, name in (("selected", "share"), ("random", "share_chance"), ("attention", "share_attention")):
        cells = ("-" if one[name] is None else f"{100 * one[name]:.0f}" for one in bins)
        yield f"{title:15}" + "".join(f"{cell:>{width}}" for cell in cells)
    quantiles, chance = distance["quantiles"], distance["quantiles_chance"]
    yield (
        f"Half of the selected keys: within {quantiles['0.5']} tokens (random {chance['0.5']}); "
        f"nine tenths: {quantiles['0.9']} ({chance['0.9']})"
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
