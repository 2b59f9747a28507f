"""`visualize-selection` in the terminal: the text with a query's keys marked, its highest keys, and the numbers.

In colour where there is any; as ASCII marks elsewhere, which say the same. 80 columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from dsabench.analysis.selection import FIRST, Numbers, layer_recall_T, missed_TS
from dsabench.data.pieces import visible
from dsabench.engine.chance import selection_chance_T

if TYPE_CHECKING:
    from dsabench.analysis.inspect_run import Inspection
    from dsabench.engine.inspection import LayerSelection

WIDTH = 80

BEFORE, AFTER = 600, 12
"""Tokens shown before and after the query; of a longer past, the count of what is left out."""

TOP = 8
"""Keys listed, of the selected and of the missed ones."""

QUERY, MISSED, LATER = "query", "missed", "later"
_STYLES = {
    QUERY: "bold reverse",
    "1": "#000000 on #bddff3",
    "2": "#000000 on #56b4e9",
    "3": "bold #ffffff on #00497a",
    MISSED: "underline #000000 on #e69f00",
    LATER: "dim",
    "": "",
}
_MARKS = {
    QUERY: "<<{}>>",
    "1": "[{}|1]",
    "2": "[{}|2]",
    "3": "[{}|3]",
    MISSED: "{{{}}}",
    LATER: "{}",
    "": "{}",
}


def print_inspection(inspection: Inspection, layer: LayerSelection, query: int, console: Console) -> None:
    """Everything that the terminal shows of one inspection."""
    coloured = console.is_terminal and not console.no_color and console.color_system is not None

    def say(line: str | Text = "") -> None:
        text = line if isinstance(line, Text) else Text(line)
        console.print(text if _can_encode(text.plain, console) else _replaced(text, console), soft_wrap=True)

    for line in wrapped(_prose(visible(inspection.title)), WIDTH):
        say(line)
    if inspection.numbers["mean"].get("mass_recall") is not None:
        say()
        for row in number_lines(inspection.numbers):
            say(row)
        say()
        for row in distance_lines(inspection.numbers["layers"][inspection.layers.index(layer)]):
            say(row)
    say()
    for row in query_lines(inspection, layer, query):
        say(row)
    say()
    kinds = token_kinds(layer, query)
    first, last = max(0, query - BEFORE), min(layer.length, query + 1 + AFTER)
    if first:
        left_out = int(layer.member_TS[query, :first].sum())
        say(f"({first} earlier tokens, {left_out} of them selected, are not shown here; the page has all)")
    shown = zip(inspection.pieces[first:last], kinds[first:last], strict=True)
    for line in wrapped([(visible(piece), kind) for piece, kind in shown], WIDTH, marks=not coloured):
        say(line)
    for line in wrapped(_legend(coloured), WIDTH):
        say(line)


def token_kinds(layer: LayerSelection, query: int) -> list[str]:
    """What each token of the window is to the query: query, 3, 2, 1 (thirds of the selected keys by score, 3 the
    highest; by attention mass without scores), missed, later, or nothing."""
    kinds = [""] * (query + 1) + [LATER] * (layer.length - query - 1)
    keys = layer.selected_TK[query, : layer.n_selected_T[query]]
    if layer.scores_TS is None:
        keys = keys[np.argsort(-layer.mass_TS[query, keys], kind="stable")]
    for rank, key in enumerate(keys):
        kinds[key] = str(3 - 3 * rank // len(keys))
    for key in np.flatnonzero(missed_TS(layer)[query]):
        kinds[key] = MISSED
    kinds[query] = QUERY
    return kinds


def query_lines(inspection: Inspection, layer: LayerSelection, query: int) -> Iterator[str]:
    """The query, what its selection holds, its highest keys, and the heaviest of those it missed."""
    n, recall = int(layer.n_selected_T[query]), layer_recall_T(layer)[query]
    chance = selection_chance_T(layer.n_selected_T)[query]
    missed = np.flatnonzero(missed_TS(layer)[query])
    missed = missed[np.argsort(-layer.mass_TS[query, missed], kind="stable")]
    token = _token(inspection, query, 30).rstrip()
    yield f"Layer {layer.layer}, query {query} {token}: {n} of {query + 1} keys selected,"
    yield f"holding {recall:.2f} of the attention (chance {chance:.2f}); {len(missed)} missed"
    yield ""
    kept = layer.selected_TK[query, : min(n, TOP)]
    yield f"{'selected':16}{'at':>6}{'score':>9}{'mass':>8}    {'missed':16}{'at':>6}{'mass':>8}".rstrip()
    for i in range(max(len(kept), min(TOP, len(missed)))):
        left, right = " " * 39, ""
        if i < len(kept):
            key = int(kept[i])
            score = "-" if layer.scores_TS is None else f"{layer.scores_TS[query, key]:.3f}"
            left = f"{_token(inspection, key, 16)}{key:>6}{score:>9}{layer.mass_TS[query, key]:>8.4f}"
        if i < len(missed):
            key = int(missed[i])
            right = f"    {_token(inspection, key, 16)}{key:>6}{layer.mass_TS[query, key]:>8.4f}"
        yield (left + right).rstrip()


def number_lines(numbers: Numbers) -> Iterator[str]:
    """One line a layer, their mean, and what chance would give."""
    columns = (
        ("recall", "mass_recall", 7, ".2f"),
        ("best", "mass_recall_best", 6, ".2f"),
        ("oracle", "oracle_overlap", 8, ".2f"),
        ("nearest", "nearest_kept", 9, ".2f"),
        (f"first {FIRST}", "first_kept", 9, ".2f"),
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
    meaning = (
        "recall: share of full attention on the selected keys; best: on as many best keys. Share of these keys that is "
        f"selected: oracle, the best ones; nearest; first {FIRST} of the window; previous, those of the query before. "
        "entropy: of the attention, and of softmax(index score) on the selected keys, nats. never: keys that no query "
        f"selected. rand.: random keys, even attention. Means over queries from k = {_ks(numbers)} on."
    )
    yield from (line.plain for line in wrapped(_prose(meaning), WIDTH))
    if len(numbers["layers"]) > 1:
        yield from _overlap(numbers["layer_overlap"])


def distance_lines(numbers: Numbers) -> Iterator[str]:
    """How far back a layer's selected keys lie: per cent of them, of random ones and of the attention, by distance."""
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


def wrapped(tokens: list[tuple[str, str]], width: int, marks: bool = False) -> Iterator[Text]:
    """Lines of at most `width` cells of (text, kind) tokens, marked in ASCII or styled; broken between words where
    that is possible, and after a \\n."""
    line, room = Text(), width
    for word in _words(tokens):
        cells = [(_marked(text, kind) if marks or kind == QUERY else text, kind) for text, kind in word]
        if sum(cell_len(text) for text, _ in cells) > room and line:
            yield line
            line, room = Text(), width
            text, kind = cells[0]
            cells[0] = (text.lstrip(" ") or text, kind)
        for text, kind in cells:
            while cell_len(text) > room:  # a word longer than a line
                head = set_cell_size(text, room).rstrip() if room else ""
                head = text[: max(1, len(head))] if not line else text[: len(head)]
                line.append(head, "" if marks else _STYLES[kind])
                yield line
                line, room, text = Text(), width, text[len(head) :]
            line.append(text, "" if marks else _STYLES[kind])
            room -= cell_len(text)
        if word[-1][0].endswith("\\n"):
            yield line
            line, room = Text(), width
    if line:
        yield line


def _words(tokens: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Tokens that belong together: a new word begins with a space and after an end of a line."""
    word: list[tuple[str, str]] = []
    for before, token in pairwise([("", ""), *tokens]):
        if word and (token[0].startswith(" ") or before[0].endswith("\\n")):
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _marked(text: str, kind: str) -> str:
    if kind in ("", LATER):
        return text
    bare = text.lstrip(" ")
    return text[: len(text) - len(bare)] + _MARKS[kind].format(bare)


def _legend(coloured: bool) -> list[tuple[str, str]]:
    missed = "not selected, but more than an even share of the attention"
    if coloured:
        thirds = [("low", "1"), ("middle", "2"), ("high", "3")]
        return [("query", QUERY), *_prose("  selected, by score:"), (" ", ""), *thirds, ("  ", ""), ("missed", MISSED),
                *_prose(f": {missed}")]  # fmt: skip
    return _prose(
        f"<<query>>  [word|3] selected, by score: 3 the highest third, 1 the lowest  {{word}} missed: {missed}"
    )


def _prose(text: str) -> list[tuple[str, str]]:
    """Text as tokens for `wrapped`, a word each."""
    return [(word, "") for word in re.findall(r" *[^ ]+", text)]


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


def _token(inspection: Inspection, i: int, width: int) -> str:
    """A token in quotes, cut and filled to `width` cells."""
    text = visible(inspection.pieces[i])
    if cell_len(text) > width - 3:
        text = set_cell_size(text, width - 4).rstrip() + "~"
    return set_cell_size(f"'{text}'", width)


def _can_encode(text: str, console: Console) -> bool:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _replaced(text: Text, console: Console) -> Text:
    """For an output that cannot say everything (a pipe in an old code page): question marks, styles kept."""
    plain = "".join(c if _can_encode(c, console) else "?" for c in text.plain)
    return Text(plain, spans=text.spans)
