"""`dsabench configs`: every shipped experiment by name, with one line that its file holds."""

from __future__ import annotations

import json
import re

import pytest
from shell import Shell

from dsabench.spec.config import about, load_sweep, shipped_configs

CONFIGS = shipped_configs()


def test_every_config_is_listed_with_the_first_line_of_its_file(shell: Shell) -> None:
    code, out, err = shell("configs")
    assert (code, err) == (0, "")
    rows = dict(re.findall(r"^(\w+)  +(\S.*)$", out.partition("\n\n")[0], re.MULTILINE))
    assert rows == {name: path.read_text().splitlines()[0].removeprefix("# ") for name, path in CONFIGS.items()}
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", CONFIGS)
def test_the_line_of_a_config_is_a_sentence_with_its_number_of_runs(name: str) -> None:
    line = about(CONFIGS[name])
    assert line[0].isupper() and line.endswith(".")
    (runs,) = re.findall(r"(\d+) runs", line)
    assert int(runs) == len(load_sweep(name).runs())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_printed_as_its_file(shell: Shell, name: str) -> None:
    assert shell("configs", name) == (0, CONFIGS[name].read_text(encoding="utf-8"), "")


def test_the_document_holds_names_lines_and_files(shell: Shell) -> None:
    found = json.loads(shell("configs", "--json")[1])
    assert {one["name"]: one["path"] for one in found} == {name: str(path) for name, path in CONFIGS.items()}
    assert all(one["about"] for one in found)
    assert [one["name"] for one in json.loads(shell("configs", "quick", "--json")[1])] == ["quick"]


@pytest.mark.parametrize("words", [("configs", "qick"), ("sweep", "--config", "qick", "--dry-run")])
def test_a_name_that_is_none_names_the_nearest_and_the_list(shell: Shell, words: tuple[str, ...]) -> None:
    code, out, err = shell(*words)
    assert (code, out) == (2, "")
    assert "'qick'; did you mean quick?" in err and "`dsabench configs`" in err
