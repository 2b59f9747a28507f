"""`dsabench guide`: the list of topics, a page in a pipe, a page in a terminal, and topics that there are not."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from shell import Shell, loaded

from dsabench.cli.views.guide_page import GuideMarkdown, for_terminal
from dsabench.guide import topics
from dsabench.guide.topics import pages

FOLDER = Path(topics.__file__).parent


def rendered(text: str, width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(GuideMarkdown(for_terminal(text)))
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


def test_every_page_has_a_title_and_a_summary_of_one_line() -> None:
    found = pages()
    assert set(found) == {path.stem for path in FOLDER.glob("*.md")}
    assert next(iter(found)) == "start"
    for topic, page in found.items():
        title, empty, summary, below, *_ = page.text.split("\n")
        assert title.startswith("# ") and (empty, below) == ("", ""), topic
        assert page.summary == summary
        assert len(summary) <= 75 and summary[0].isupper() and summary.endswith(".") and summary.count(". ") == 0, topic


@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_without_a_topic_it_lists_them_all_in_the_width_of_the_terminal(
    shell: Shell, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width or 80))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None)
    code, out, err = shell("guide")
    assert (code, err) == (0, "")
    head, empty, *lines = out.splitlines()
    assert head == "The guide, by topic. Read one: dsabench guide TOPIC" and empty == ""
    listed = [line.split()[0] for line in lines if not line.startswith("   ")]
    assert listed == list(pages())
    assert " ".join(out.split()).count(" ".join(pages()["verdicts"].summary.split())) == 1
    assert max(map(len, out.splitlines())) <= (width or 1_000)
    assert (len(lines) == len(pages())) == (width in (200, None)), "a line a topic where there is room"


@pytest.mark.parametrize("topic", list(pages()))
def test_in_a_pipe_a_page_is_the_file(shell: Shell, topic: str) -> None:
    assert shell("guide", topic) == (0, (FOLDER / f"{topic}.md").read_text(encoding="utf-8"), "")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("verdict", "error: there is no guide page 'verdict'; did you mean verdicts?\n"),
        ("Speed", "error: there is no guide page 'Speed'; did you mean speed?\n"),
        ("zebra", f"error: there is no guide page 'zebra'; known: {', '.join(pages())}\n"),
    ],
)
def test_another_word_is_answered_with_the_nearest_topic(shell: Shell, word: str, answer: str) -> None:
    assert shell("guide", word) == (2, "", answer)


@pytest.mark.parametrize("words", [["guide"], ["guide", "verdicts"], ["guide", "--help"]])
def test_it_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    assert loaded(words, tmp_path) == []


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("topic", list(pages()))
def test_a_page_fits_the_terminal_and_keeps_its_code_whole(topic: str, width: int) -> None:
    text = pages()[topic].text
    shown = rendered(text, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "\U0001f306" not in shown and ".md)" not in shown and "](" not in shown, "a link is spelt out"
    code = [line for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    lines = [line.strip() for line in shown.splitlines()]
    assert not [line for line in code if line.strip() not in lines], "no line of code is wrapped"


def test_links_read_as_commands_files_and_captions() -> None:
    assert for_terminal("see [verdicts](verdicts.md)") == "see `dsabench guide verdicts`"
    assert for_terminal("[Metrics](metrics.md#units) are") == "`dsabench guide metrics` are"
    assert for_terminal("[what it costs](speed.md#cost)") == "what it costs (`dsabench guide speed`)"
    assert for_terminal("[`base.py`](../attention/base.py)") == "`dsabench/attention/base.py`"
    assert for_terminal("[a sweep](../../configs/seed.yaml)") == "a sweep (`configs/seed.yaml`)"
    assert for_terminal("[Ray](https://docs.ray.io)") == "Ray (https://docs.ray.io)"
    assert for_terminal("[docs.ray.io](https://docs.ray.io/)") == "docs.ray.io"
    assert for_terminal("![Loss](../../.github/assets/loss.png)") == "*Picture: Loss (loss.png)*"
    assert for_terminal("[above](#the-verdict)") == "above"
    code = "```python\nx[0](verdicts.md)\n```"
    assert for_terminal(f"{code}\n[verdicts](verdicts.md)") == f"{code}\n`dsabench guide verdicts`"


def test_in_a_terminal_it_goes_to_the_pager(tmp_path: Path) -> None:
    """A process whose terminal is ours, with `cat` as its pager."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", "from dsabench.cli.app import main; main()", "guide", "security"]
    settings = {"PAGER": "tee pager.txt", "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")} | settings
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # by which Linux says that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    assert process.wait(timeout=60) == 0, shown.decode()
    paged = (tmp_path / "pager.txt").read_text()
    assert "\x1b[1m" in paged, "styled"
    assert paged.replace("\n", "\r\n") in shown.decode(), "the pager alone writes to the terminal"
    assert "Security" in paged and "# Security" not in paged and pages()["security"].summary in paged
