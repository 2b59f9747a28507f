"""The pages of the guide that are made from code: they are current, and hold every field, command and option."""

from __future__ import annotations

import re

import pytest

from dsabench.attention.registry import kinds
from dsabench.cli import generated_pages
from dsabench.guide.topics import pages
from dsabench.spec.schema import config_schema
from dsabench.spec.tune import TuneSpec


@pytest.mark.parametrize("topic", list(generated_pages.PAGES))
def test_a_page_is_what_the_code_says_now(topic: str) -> None:
    page = pages().get(topic)
    assert page is not None and page.text == generated_pages.PAGES[topic](), (
        f"guide/{topic}.md is out of date; write it anew: python -m dsabench.cli.generated_pages"
    )


def test_every_field_of_the_schema_is_on_the_page() -> None:
    listed = re.findall(r"^- `([\w.]+)`", pages()["fields"].text, re.MULTILINE)
    paths = set(config_schema()["properties"]["axes"]["propertyNames"]["enum"])
    parts = {"base", "axes", "verdict", "ladder", "tune"}
    of_the_sweep = {"verdict.margin", *(f"tune.{name}" for name in TuneSpec.model_fields)}
    assert of_the_sweep <= set(listed)
    assert paths == set(listed) - parts - of_the_sweep
    assert all(re.search(rf"\b{kind}\b", pages()["fields"].text) for kind in kinds())


def test_a_field_is_listed_with_bounds_default_documentation_and_owners() -> None:
    text = " ".join(pages()["fields"].text.split())
    assert "- `train.steps`: a whole number at least 1; default `1000`. Optimizer steps, the dense" in text
    assert "- `attention.block_size` (moba): a whole number at least 1; default `16`. Tokens of a block;" in text
    assert "- `data.task.n_words` (needle): a whole number at least 2 and at most 16,384; default `128`." in text


def test_a_command_is_listed_with_usage_options_and_its_page() -> None:
    section = pages()["commands"].text.partition("## dsabench visualize-selection\n")[2].partition("\n## ")[0]
    assert "    dsabench visualize-selection [RUN] [OPTIONS]\n" in section
    assert "- `--device NAME`: Where to compute: auto, cpu, cuda, cuda:N or mps; default\n  `cpu`.\n" in section
    assert "- `--store DIR`: Folder that keeps every run; variable `DSABENCH_STORE`; default\n  `runs`.\n" in section
    assert section.endswith("Guide: [verdicts](verdicts.md)\n")
