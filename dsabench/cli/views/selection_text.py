"""`visualize-selection` in the terminal: the text with a query's keys marked, its highest keys, and the numbers.

In colour where there is any; as ASCII marks elsewhere, which say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from dsabench.cli.safe_text import readable
from dsabench.cli.views.marked_text import FOUND, LATER, LOST, MISSED, QUERY, WIDTH, prose, wrapped
from dsabench.cli.views.selection_numbers import print_distances, print_numbers
from dsabench.cli.views.text_table import Column, print_table, say
from dsabench.engine.chance import selection_chance_T
from dsabench.selection.numbers import layer_recall_T, missed_TS
from dsabench.selection.targets import Questions, rank_of

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection
    from dsabench.selection.stored_run import Inspection

BEFORE, AFTER = 600, 12
"""Tokens shown before and after the query; of a longer past, the count of what is left out."""

MOST = 120
"""Cells of a line of text on a wide terminal; longer lines are hard to read."""

TOP = 8
"""Keys listed, of the selected and of the missed ones."""

QUERIES = 8
"""Scored queries that are named where another was chosen."""

_KEYS = (
    Column("selected", left=True, least=16),
    Column("at"),
    Column("score"),
    Column("mass"),
    Column("missed", left=True, least=16),
    Column("at"),
    Column("mass"),
)


def print_inspection(inspection: Inspection, layer: LayerSelection, query: int, console: Console) -> None:
    """Print the numbers of the layers, the query with its keys, and the marked text."""
    coloured = console.is_terminal and not console.no_color and console.color_system is not None

    width = min(console.width, MOST) if console.is_terminal else WIDTH
    say(console, readable(inspection.title))
    if inspection.numbers["mean"].get("mass_recall") is not None:
        say(console, "")
        print_numbers(inspection.numbers, console)
        say(console, "")
        print_distances(inspection.numbers["layers"][inspection.layers.index(layer)], console)
    say(console, "")
    say(console, *query_lines(inspection, layer, query), "")
    print_keys(inspection, layer, query, console)
    say(console, "")
    kinds = token_kinds(layer, query, inspection.questions)
    first, last = max(0, query - BEFORE), min(layer.length, query + 1 + AFTER)
    if first:
        left_out = int(layer.member_TS[query, :first].sum())
        say(console, f"({first} earlier tokens, {left_out} of them selected, are not shown here; the page has all)")
    tokens = [
        ((inspection.separator if i > first else "") + readable(inspection.pieces[i]), kinds[i])
        for i in range(first, last)
    ]
    legend = wrapped(_legend(coloured, tasks=inspection.questions is not None), width)
    for line in [*wrapped(tokens, width, marks=not coloured), *legend]:
        console.print(line, soft_wrap=True)


def token_kinds(layer: LayerSelection, query: int, questions: Questions | None = None) -> list[str]:
    """The kind of each token of the window for this query: query, 3, 2, 1 (thirds of the selected keys by score, 3 the
    highest; by attention mass without scores), missed, later, or nothing. With `questions`, found and lost are the
    query's targets that are selected and not, whatever else they are."""
    kinds = [""] * (query + 1) + [LATER] * (layer.length - query - 1)
    keys = layer.selected_TK[query, : layer.n_selected_T[query]]
    if layer.scores_TS is None:
        keys = keys[np.argsort(-layer.mass_TS[query, keys], kind="stable")]
    for rank, key in enumerate(keys):
        kinds[key] = str(3 - 3 * rank // len(keys))
    for key in np.flatnonzero(missed_TS(layer)[query]):
        kinds[key] = MISSED
    for key in [] if questions is None else questions.targets(query):
        kinds[key] = FOUND if layer.member_TS[query, key] else LOST
    kinds[query] = QUERY
    return kinds


def query_lines(inspection: Inspection, layer: LayerSelection, query: int) -> Iterator[str]:
    """The query and what its selection holds; of a task its targets."""
    n, recall = int(layer.n_selected_T[query]), layer_recall_T(layer)[query]
    chance = selection_chance_T(layer.n_selected_T)[query]
    missed = int(missed_TS(layer)[query].sum())
    yield (
        f"Layer {layer.layer}, query {query} {_token(inspection, query)}: {n} of {query + 1} keys selected, "
        f"holding {recall:.2f} of the attention (chance {chance:.2f}); {missed} missed"
    )
    if inspection.questions is not None:
        yield from target_lines(inspection, inspection.questions, layer, query)


def print_keys(inspection: Inspection, layer: LayerSelection, query: int, console: Console) -> None:
    """Print the highest keys that the query selected, beside the heaviest of those that it missed."""
    n = int(layer.n_selected_T[query])
    missed = np.flatnonzero(missed_TS(layer)[query])
    missed = missed[np.argsort(-layer.mass_TS[query, missed], kind="stable")]
    kept = layer.selected_TK[query, : min(n, TOP)]
    rows = []
    for i in range(max(len(kept), min(TOP, len(missed)))):
        left, right = ["", "", "", ""], ["", "", ""]
        if i < len(kept):
            key = int(kept[i])
            score = "-" if layer.scores_TS is None else f"{layer.scores_TS[query, key]:.3f}"
            left = [_token(inspection, key), str(key), score, f"{layer.mass_TS[query, key]:.4f}"]
        if i < len(missed):
            key = int(missed[i])
            right = [_token(inspection, key), str(key), f"{layer.mass_TS[query, key]:.4f}"]
        rows.append([*left, *right])
    print_table(console, _KEYS, rows, rule=False)


def target_lines(inspection: Inspection, questions: Questions, layer: LayerSelection, query: int) -> Iterator[str]:
    """The question at the query and the model's answer, then a line for each target with its rank from 1 on."""
    if query not in questions.answers:
        last = questions.queries[-QUERIES:]
        dots = "... " if len(last) < len(questions.queries) else ""
        yield f"nothing is asked here; queries that ask something: {dots}{', '.join(map(str, last))}"
        return
    right, model = questions.answers[query], questions.model_answers[query]
    yield f"asked is '{right}'; the model answers '{model}', which is {'right' if model == right else 'wrong'}"
    for key in questions.targets(query):
        place = rank_of(layer, query, key)
        of = "" if place is None else f", rank {place + 1} of {layer.n_selected_T[query]}"
        found = f"selected{of}" if layer.member_TS[query, key] else "not selected"
        yield f"target {_token(inspection, key)} at {key}: {found}"


def _legend(coloured: bool, tasks: bool) -> list[tuple[str, str]]:
    missed = "not selected, but more than an even share of the attention"
    if coloured:
        thirds = [("low", "1"), ("middle", "2"), ("high", "3")]
        targets = [("  ", ""), ("target", FOUND), *prose(" selected"), ("  ", ""), ("target", LOST),
                   *prose(" not selected")]  # fmt: skip
        return [("query", QUERY), *prose("  selected, by score:"), (" ", ""), *thirds, ("  ", ""), ("missed", MISSED),
                *prose(f": {missed}"), *(targets if tasks else [])]  # fmt: skip
    return prose(
        f"<<query>>  [word|3] selected, by score: 3 the highest third, 1 the lowest  {{word}} missed: {missed}"
        + ("  [*word*] target, selected  (*word*) target, not selected" if tasks else "")
    )


def _token(inspection: Inspection, i: int) -> str:
    """A token in quotes."""
    return f"'{readable(inspection.pieces[i])}'"
