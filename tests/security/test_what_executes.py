"""The guide's list of what executes a plugin, against every command and every public function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from hostile import tiny
from shell import Shell

import dsabench
from dsabench import load_spec, train
from dsabench.attention import plugins
from dsabench.cli.app import app
from dsabench.errors import DsabenchError

PAGE = Path(plugins.__file__).parents[1] / "guide" / "security.md"

RUN = "RUN"
"""In words: the id of a stored run of a plugin's attention."""

ANY: dict[str, list[list[str]]] = {
    "sweep": [["--dry-run", "--config", "quick"]],
    "train": [["--config", "c.yaml"]],
    "profile": [["--config", "c.yaml", "--device", "cpu"]],
    "plot": [["learning"]],
    "visualize-selection": [[RUN], []],
    "report": [["--run", RUN], []],
    "bench": [["--run", RUN, "--device", "cpu"]],
    "audit": [[RUN], ["--config", "c.yaml"]],
    "export": [[RUN, "--to", "tensorboard"]],
    "new-attention": [["yours"]],
    "runs show": [[RUN, "--all"]],
    "runs diff": [[RUN, RUN]],
    "runs rm": [[RUN, "--yes"]],
    "runs export": [["table.csv", "--metrics"]],
    "compare": [["--all"]],
}
"""Words of commands, without a plugin in a config. A command that is not here is given the run if it takes one."""

FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "bench_layer": lambda run: dsabench.bench_layer(run=run, store="runs", device="cpu"),
    "build_model": lambda run: dsabench.build_model(load_spec("c.yaml")),
    "compare": lambda run: dsabench.compare("runs"),
    "diff_runs": lambda run: dsabench.diff_runs("runs", run, run),
    "export_model": lambda run: dsabench.export_model("runs", run, Path("exported")),
    "inspect_selection": lambda run: dsabench.inspect_selection("runs", run),
    "load_lists": lambda run: dsabench.load_lists("runs"),
    "load_metrics": lambda run: dsabench.load_metrics("runs"),
    "load_model": lambda run: dsabench.load_model("runs", run),
    "load_runs": lambda run: dsabench.load_runs("runs"),
    "load_spec": lambda run: load_spec("c.yaml"),
    "reproduce": lambda run: dsabench.reproduce("runs", run),
    "sweep": lambda run: dsabench.sweep("c.yaml", store="runs"),
    "train": lambda run: dsabench.train(load_spec("c.yaml"), store="runs"),
}


def listed(start: str) -> set[str]:
    """The commands (`audit RUN` is `audit`) and functions that the page's point with this start has in backticks."""
    (point,) = [one for one in re.split(r"\n(?=- |\n)", PAGE.read_text(encoding="utf-8")) if one.startswith(start)]
    found = re.findall(r"`([^`]+)`", point)
    return {words.removesuffix(" RUN").removesuffix(" --run") for words in found if not words.startswith("--")}


BY_CONFIG, BY_RUN = "- a config or", "- you **name** a stored run"


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in (group or typer.main.get_command(app)).commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, f"{before}{name} ")
        else:
            yield f"{before}{name}", found


COMMANDS = dict(commands())


@pytest.fixture
def run(shell: Shell, corpus: Path, canary: Path) -> str:
    """A stored run of a plugin, and a config of a built-in attention that trains the like."""
    tree: dict[str, Any] = {}
    for path, value in tiny(corpus).items():
        *parents, name = path.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    (shell.folder / "c.yaml").write_text(f"base: {tree!r}\n".replace("'", '"'))
    record = train(load_spec("c.yaml", {"plugins": ["mine.py"], "attention.kind": "mine"}), "runs")
    return record.run_id


def executed(canary: Path, work: Callable[[], object]) -> bool:
    """Whether work() executes the plugin, in a process that has not done so."""
    canary.unlink(missing_ok=True)
    plugins._digests.clear()
    with suppress(DsabenchError):
        work()
    return canary.exists()


def test_of_commands_that_are_given_a_stored_run_those_listed_execute_its_plugin(
    shell: Shell, run: str, canary: Path, one_figure: None
) -> None:
    found = set()
    assert set(ANY) <= set(COMMANDS)
    for name, command in sorted(COMMANDS.items(), key=lambda item: item[0] == "runs rm"):
        takes_run = any(parameter.name in ("run", "runs") for parameter in command.params)
        for words in ANY.get(name, [[RUN] if takes_run else []]):
            words = [run if word == RUN else word for word in words]
            if executed(canary, lambda name=name, words=words: shell(*name.split(), *words)):
                assert run in words, f"{name} {words} executes a plugin that nobody named"
                found.add(name)
    assert found == {name for name in listed(BY_RUN) if "." not in name}


def test_of_commands_that_take_a_config_those_listed_execute_its_plugin(shell: Shell, run: str, canary: Path) -> None:
    (shell.folder / "p.yaml").write_text((shell.folder / "c.yaml").read_text()[:-2] + ', "plugins": ["mine.py"]}\n')
    found = set()
    for name, command in COMMANDS.items():
        if any(parameter.name == "config" for parameter in command.params):
            more = {"sweep": ["--dry-run"], "profile": ["--device", "cpu"]}.get(name, [])
            if executed(canary, lambda name=name, more=more: shell(*name.split(), "--config", "p.yaml", *more)):
                found.add(name)
    assert found == {name for name in listed(BY_CONFIG) if "." not in name}


def test_what_executes_one_can_be_told_not_to() -> None:
    refusing = {name for name, found in COMMANDS.items() if any(p.name == "no_plugins" for p in found.params)}
    assert refusing == {name for name in listed(BY_CONFIG) | listed(BY_RUN) if "." not in name}


def test_of_public_functions_those_listed_execute_a_plugin(shell: Shell, run: str, canary: Path) -> None:
    public = {name for name in dsabench.__all__ if inspect.isfunction(getattr(dsabench, name)) and name != "no_plugins"}
    assert public == set(FUNCTIONS)
    by_run = {name for name, call in FUNCTIONS.items() if executed(canary, lambda call=call: call(run))}
    assert {f"dsabench.{name}" for name in by_run} == {name for name in listed(BY_RUN) if "." in name}
    named = {"plugins": ["mine.py"]}
    by_config = {
        "load_spec": lambda: load_spec("c.yaml", named),
        "sweep": lambda: dsabench.sweep("c.yaml", store="runs", overrides=named),
    }
    found = {f"dsabench.{name}" for name, call in by_config.items() if executed(canary, call)}
    assert found == {name for name in listed(BY_CONFIG) if "." in name}
