"""An attention of one's own: the worked example goes through every command; what a file may register."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shell import Shell, small_run

import dsabench
from dsabench.attention import plugins, registry
from dsabench.errors import SpecError
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.run import validate
from dsabench.testing import CHECKS

EXAMPLE = shipped_configs()["seed"].parent / "custom_attention"


pytestmark = pytest.mark.usefixtures("no_audit_remembered")


# The worked example.


def shipped_test() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_my_attention", EXAMPLE / "test_my_attention.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_keeps_the_contract(check: Any, n_kv_heads: int) -> None:
    shipped_test().test_contract(check, n_kv_heads)


def test_the_example_through_every_command(shell: Shell, corpus: Path) -> None:
    """One long test: the command that the README shows, then sweep, compare, plot, audit, from the example's files."""
    for name in ("my_attention.py", "sweep.yaml"):
        shutil.copy(EXAMPLE / name, shell.folder)
    words = ["--set", "plugins=[my_attention.py]", "--attention", "my_attention"]
    code, _, err = shell("train", *words, *small_run(corpus))
    assert code == 0, err
    (run,) = dsabench.load_runs("runs").to_dict("records")
    assert run["attention"] == "my_attention" and run["status"] == "done" and not run["leak"]

    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    shell.patch.chdir(elsewhere)
    lengths = ["--lengths", "16", "--seeds", "1", "2", "3"]
    code, out, err = shell("sweep", "--config", "../sweep.yaml", *small_run(corpus), *lengths)
    assert code == 0, err
    assert "my_attention" in out
    runs = dsabench.load_runs("runs")
    assert len(runs) == 6 and set(runs["attention"]) == {"dense", "my_attention"} and set(runs["status"]) == {"done"}
    assert set(runs["plugins"]) == {f'["{shell.folder / "my_attention.py"}"]'}
    code, out, err = shell("compare")
    assert code == 0, err
    assert re.search(r"16  my_attention +3 ", out), out
    code, out, err = shell("plot")
    assert code == 0 and "results/positions.png" in out and "results/forest.png" in out, err
    code, out, err = shell("audit", "--config", "../sweep.yaml", *small_run(corpus), "--attention", "my_attention")
    assert code == 0 and "fp64" in out and "same start as dense   ok" in out, out + err


def test_where_a_plugin_is_looked_for(shell: Shell, tmp_path: Path) -> None:
    """Beside the config that names it, else from the current folder; --set from the current folder alone."""
    config = tmp_path / "configs" / "mine.yaml"
    config.parent.mkdir()
    config.write_text("base:\n  plugins: [my_attention.py]\n")
    with pytest.raises(SpecError, match=rf"mine\.yaml:2: plugins: my_attention\.py .* config, nor .* {tmp_path}$"):
        load_sweep(str(config))
    shutil.copy(EXAMPLE / "my_attention.py", tmp_path)
    assert load_sweep(str(config)).base["plugins"] == [str(tmp_path / "my_attention.py")]
    shutil.copy(EXAMPLE / "my_attention.py", config.parent)
    assert load_sweep(str(config)).base["plugins"] == [str(config.parent / "my_attention.py")]
    with pytest.raises(SpecError, match=rf"plugins: nowhere\.py is not a file \(seen from {tmp_path}\)"):
        load_sweep(str(config)).set("plugins", ["nowhere.py"], "--set plugins: ")


def test_an_attention_without_the_shared_projections_trains(shell: Shell, corpus: Path) -> None:
    """Only its start then differs from dense's, as `dsabench audit` says."""
    source = (
        MINE.replace("import Dense", "import Dense\nfrom dsabench.attention.base import AttentionOutput")
        + """
    def __init__(self, spec, layer):
        super().__init__(spec, layer)
        self.projections = None

    def prepare(self, context):
        pass

    def forward(self, x_BTD, context):
        return AttentionOutput(0 * x_BTD)
"""
    )
    (shell.folder / "mine.py").write_text(source)
    words = ["--set", "plugins=[mine.py]", "--attention", "mine", *small_run(corpus), "--length", "32"]
    code, _, err = shell("train", *words)
    assert code == 0, err
    code, out, err = shell("audit", *words)
    assert code == 1 and "same start as dense   FAIL    4 of 12 tensors" in out and "query.weight is" in out, out + err


# What a file may register, again and beside others.

MINE = """
from typing import Literal
from dsabench.attention.dense import Dense
from dsabench.attention.registry import register
from dsabench.spec.attention import AttentionSpec

class MineSpec(AttentionSpec):
    kind: Literal["mine"] = "mine"

@register
class Mine(Dense):
    spec_class = MineSpec

    def flops(self, stage):
        return {"a": 1.0}
"""


def flops(plugin: Path) -> float:
    spec = validate({"plugins": [str(plugin)], "attention": {"kind": "mine"}})
    return float(registry.variant("mine")(spec, 0).flops("sparse")["a"])


def test_an_edit_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of the same size within the second, which Python's cache of compiled files cannot see."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    plugin = tmp_path / "mine.py"
    for value in range(1, 4):
        plugin.write_text(MINE.replace("1.0", f"{value}.0"))
        assert flops(plugin) == value
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_failed_edit_changes_nothing_and_a_kind_that_left_is_gone(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE)
    plugins.load_plugin(str(plugin))
    before, digest = registry.variant("mine"), plugins.plugin_digest("mine")
    other = MINE.replace('"mine"', '"other"')
    plugin.write_text(other + "1 / 0\n")
    with pytest.raises(SpecError, match="ZeroDivisionError"):
        plugins.load_plugin(str(plugin))
    assert registry.variant("mine") is before and plugins.plugin_digest("mine") == digest
    assert "other" not in registry.kinds()
    plugin.write_text(other)
    plugins.load_plugin(str(plugin))
    assert "other" in registry.kinds() and "mine" not in registry.kinds()


def test_two_files_cannot_share_a_kind(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(MINE + f"# {folder}\n")
    plugins.load_plugin(str(tmp_path / "a" / "mine.py"))
    known = re.escape(f"attention kind 'mine' is already registered by Mine of {tmp_path / 'a' / 'mine.py'}")
    with pytest.raises(SpecError, match=known):
        plugins.load_plugin(str(tmp_path / "b" / "mine.py"))
