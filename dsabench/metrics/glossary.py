"""The metrics explained: the report's glossary and the guide's page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from dsabench.metrics.choices import compared, partners
from dsabench.metrics.entries import METRICS
from dsabench.metrics.metric import Metric

_WIDTH = 80

_OTHER_RUNS = {"token": "task", "answer": "text"}
"""The runs that a metric must be of to be left out, by what losses are per."""

_SOURCES = {
    "evaluation": (
        "Of an evaluation",
        "Every evaluation records them in `metrics.jsonl`; those of the last one are in the run's summary too.",
    ),
    "run": ("Of a run", "They are in the run's summary."),
    "steps": ("Of training steps", "They are in the training records of `metrics.jsonl`."),
    "analysis": ("Made of others", "No record has them: tables compute them."),
}


def glossary(scored: str = "token") -> Iterator[tuple[str, str]]:
    """(name, sentences) of every metric that a report shows; scored: what the losses of its runs are per."""
    for metric in METRICS.values():
        shown = metric.compared or metric.figure or metric.over_seeds in ("spread", "beside")
        if not shown or metric.name in partners() or metric.runs == _OTHER_RUNS.get(scored):
            continue
        short = f" ({metric.heading})" if metric.heading and metric.heading not in metric.words else ""
        yield metric.words + short, metric.per(scored).sentences
        if metric.chance and (chance := METRICS[metric.chance].per(scored)):
            yield chance.words, chance.sentences


def page() -> str:
    """The guide's page of metrics, in Markdown."""
    lines = ["# Metrics", "", "Every metric: unit, direction, meaning, and its chance or floor.", ""]
    lines += textwrap.wrap(
        "A metric has one name: its column in `runs/index.parquet` and in exports, its key in JSON documents and in "
        "`metrics.jsonl`. Trackers put `eval/`, `train/` or `summary/` before it.",
        _WIDTH,
    )
    for source, (title, about) in _SOURCES.items():
        lines += ["", f"## {title}", "", *textwrap.wrap(about, _WIDTH), ""]
        lines += ["| metric | unit | better | meaning |", "| --- | --- | --- | --- |"]
        lines += [_line(metric) for metric in METRICS.values() if metric.source == source]
    lines += ["", "## Compared", "", "`compare --metric` takes these:", ""]
    lines += [f"- `{name}`: {metric.words}" for name, metric in compared().items()]
    return "\n".join(lines) + "\n"


def _line(metric: Metric) -> str:
    meaning = f"{metric.words}: {metric.meaning}" if metric.words != metric.meaning else metric.meaning
    parts = [f"{meaning}{f'; of a task: {metric.task_meaning}' if metric.task_meaning else ''}."]
    parts += [f"Runs on a {metric.runs} have it."] if metric.runs != "all" else []
    parts += ["Attentions that select have it."] if metric.selecting else []
    parts += [metric.remark] if metric.remark else []
    if metric.chance:
        title = METRICS[metric.chance].title
        parts += [f"{title[0].upper()}{title[1:]}: `{metric.chance}`."]
    return f"| `{metric.name}` | {metric.unit} | {metric.better} | {' '.join(parts)} |"
