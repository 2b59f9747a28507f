"""README and guide: every command line is executed, every block is valid, and every link leads somewhere.

A ```bash block is executed, in a folder with a small store; where a command would train for minutes, it gets smaller
sizes or `--dry-run`. A ```sh block sets something up or needs GPUs: its command lines are parsed only, like those in
running text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import documentation
import pytest
import typer
from documentation import EXAMPLE, PAGES, ROOT, Block, Command
from shell import Shell

import dsabench
from dsabench.cli.app import app
from dsabench.spec.config import load_sweep

COMMAND: Any = typer.main.get_command(app)


def once(commands: Iterable[Command]) -> list[Command]:
    """Each command line where it stands first."""
    return list({command.words: command for command in reversed(list(commands))}.values())[::-1]


EXECUTED = once(c for page in PAGES for b in documentation.blocks(page, "bash") for c in documentation.commands(b))
PARSED = once(
    [
        *(c for page in PAGES for b in documentation.blocks(page, "sh") for c in documentation.commands(b)),
        *(c for page in PAGES for c in documentation.inline_commands(page)),
    ]
)
PYTHON = [block for page in PAGES for block in documentation.blocks(page, "python")]

SIZES = {
    "model.d_model": 16, "model.n_layers": 2, "model.n_heads": 2, "model.d_ff": 16, "model.n_experts": 2,
    "model.experts_per_token": 2, "attention.indexer.n_heads": 2, "attention.indexer.head_dim": 8,
    "data.vocab_size": 300, "data.max_documents": 8, "train.steps": 4, "train.tokens_per_step": 256,
    "train.warmup_steps": 1, "train.eval_every": 2, "train.eval_tokens": 1024,
}  # fmt: skip
"""`quick` in a second."""

MY_YAML = next(b for b in documentation.blocks(ROOT / "dsabench/guide/experiment.md", "yaml") if "axes:" in b.text)


def small(without: str = "") -> list[str]:
    """SIZES as flags."""
    return [w for k, v in SIZES.items() if not without or not k.startswith(without) for w in ("--set", f"{k}={v}")]


def say(page: Path) -> str:
    return documentation.name(page)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has after the README's first command: a checkout and a store, here of models of a second."""
    folder = tmp_path_factory.mktemp("reader")
    words = ["sweep", "--config", "quick", "--lengths", "64", "256", "--seeds", "42", "43"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["dsabench", *words, *small(), "--device", "cpu", "--quiet"])
        with pytest.raises(SystemExit) as ended:
            COMMAND()
    assert not ended.value.code
    shutil.rmtree(folder / "results")
    shutil.copytree(folder / "runs", folder / "theirs")
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "my.yaml").write_text(MY_YAML.text, encoding="utf-8")
    return folder


@pytest.fixture
def reader(prepared: Path, shell: Shell) -> Shell:
    """A shell in a folder like `prepared`."""
    shutil.copytree(prepared, shell.folder, dirs_exist_ok=True)
    return shell


def smaller(words: list[str]) -> list[str]:
    """The same command, with less to do where it would take minutes."""
    match words:
        case ["sweep" | "train", *_] if "--dry-run" not in words:
            return [*words, "--dry-run"]
        case ["audit", "--config", "quick", *_]:
            return [*words, *small(), "--length", "64"]
        case ["audit", "--config", *_]:
            return [*words, *small(without="attention"), "--length", "64"]
        case ["profile", *_]:
            return [*words, *small(), "--steps", "2"]
        case ["bench", *_]:
            return [*words, "--repeats", "1", "--only", "dense", "dsa-reference"]
        case ["runs", "rm", *_]:
            return [*words, "--yes"]
    return words


HEAVY = ("profile", "report", "plot", "audit", "bench", "reproduce")


def cases() -> list[Any]:
    """All commands; those that draw, audit or profile for seconds are left to a nightly run."""
    nightly = [command.words[0] == "pytest" or command.words[1] in HEAVY for command in EXECUTED]
    return [
        pytest.param(command, id=str(command), marks=pytest.mark.slow if late else [])
        for command, late in zip(EXECUTED, nightly, strict=True)
    ]


@pytest.mark.parametrize("command", cases())
def test_a_command_of_the_documentation_runs(command: Command, reader: Shell) -> None:
    program, *words = command.words
    if command.page == EXAMPLE:
        reader.patch.chdir(reader.folder / "configs" / "custom_attention")
        shutil.copytree(reader.folder / "runs", "runs")
    if program == "pytest":  # tests/cli/test_plugins.py runs the checks; here: they are found
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout
        assert " tests collected" in done.stdout
        return
    assert program == "dsabench"
    code, out, err = reader(*smaller(words))
    assert code == 0, err
    assert out


@pytest.mark.parametrize("command", once([*EXECUTED, *PARSED]), ids=str)
def test_a_command_has_the_options_that_it_names(command: Command) -> None:
    program, *words = command.words
    if program != "dsabench":
        return
    parser = COMMAND
    while words and not words[0].startswith("-") and hasattr(parser, "commands"):
        parser = parser.commands[words.pop(0)]
    if parser is COMMAND:  # options alone, which would be obeyed
        assert set(words) <= {option for parameter in COMMAND.params for option in parameter.opts}
    elif words:  # a command that is only named may want arguments
        parser.make_context(command.words[1], words)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{say(block.page)}:{block.line}")
def test_python_of_the_documentation_runs(block: Block, reader: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    load_spec, sizes = dsabench.load_spec, {k: v for k, v in SIZES.items() if not k.startswith("attention")}
    monkeypatch.setattr(
        dsabench, "load_spec", lambda name, overrides=None: load_spec(name, overrides={**sizes, **(overrides or {})})
    )
    sweep = dsabench.sweep
    monkeypatch.setattr(dsabench, "sweep", lambda *given, **more: sweep(*given, overrides=sizes, **more))
    names: dict[str, Any] = {}
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    for name, value in names.items():
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("page", PAGES, ids=say)
def test_every_block_says_its_language(page: Path) -> None:
    """So that none escapes these tests."""
    known = {"bash", "sh", "python", "yaml", "text", "bibtex"}
    for block in documentation.blocks(page):
        assert block.language in known, f"{say(page)}:{block.line}"
        assert block.language in ("text", "bash", "sh") or "$ dsabench" not in block.text


@pytest.mark.parametrize(
    "block", [b for p in PAGES for b in documentation.blocks(p, "yaml")], ids=lambda b: say(b.page)
)
def test_a_config_of_the_documentation_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(block.text, encoding="utf-8")
    assert load_sweep(str(tmp_path / "my.yaml")).runs()


LINKED = [*PAGES, *(ROOT / ".github" / page for page in ("CONTRIBUTING.md", "ARCHITECTURE.md")), ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", LINKED, ids=say)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in documentation.links(page):
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{say(page)}: {link}"
        assert not heading or heading in documentation.anchors(target), f"{say(page)}: {link}"


def test_contributing_names_files_that_are_there() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:tests|configs)/[\w/.]*)", text):
        assert (ROOT / path).exists(), path
