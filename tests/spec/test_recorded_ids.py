"""Run ids of every shipped config: those that commit c05b10a gave (recorded_run_ids.json), so that stores stay valid.

A run's id holds the digest of its plugin file. The two plugin files in configs/ were edited since then (they import
from `dsabench.attention` now), so their runs did get new ids. Those are held with the digest that the file had: but for
the content of the file, the identity is the recorded one.

Defaults that were corrected since then (dsabench.spec.former_values) are put back: with the former values a run is the
recorded run, with the new ones it is another.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsabench.attention import plugins
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.former_values import former_values
from dsabench.spec.run import RunSpec, validate
from dsabench.sweeps import plan, sweep_identity

RECORDED = json.loads((Path(__file__).parent / "recorded_run_ids.json").read_text())
CONFIGS = next(iter(shipped_configs().values())).parent


def test_every_shipped_config_is_recorded() -> None:
    assert {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")} == set(RECORDED["runs"])


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_its_runs_have_the_recorded_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep(str(CONFIGS / name))
    if sweep.base["data"]["source"] == "packages":  # its text, and so the ids, are those of the installed versions
        sweep.set("data.source", "sotu", "")
    digests, honest = {}, plugins.plugin_digest

    def digest(kind: str) -> str | None:
        digests[kind] = honest(kind)
        return None if digests[kind] is None else RECORDED["plugins"][kind]

    monkeypatch.setattr(plugins, "plugin_digest", digest)
    planned = plan.plan([as_it_was(spec) for spec in sweep.runs()], tmp_path)
    assert [run.run_id for run in planned] == RECORDED["runs"][name]
    assert sweep_identity.sweep_id(sweep, planned) == RECORDED["sweeps"][name]
    assert set(digests) == {kind for run in planned for kind in run.spec.attention.kinds}
    assert {kind for kind in digests if digests[kind]} == set(digests) & set(RECORDED["plugins"])


@pytest.mark.parametrize("name", ["quick.yaml", "seed.yaml"])
def test_runs_with_a_corrected_default_have_ids_of_their_own(name: str, tmp_path: Path) -> None:
    """The LayerNorm of the indexer has another epsilon: what was trained with the old one must not pass for the new."""
    now = [run.run_id for run in plan.plan(load_sweep(str(CONFIGS / name)).runs(), tmp_path)]
    for run_id, recorded in zip(now, RECORDED["runs"][name], strict=True):
        assert (run_id == recorded) == run_id.startswith("dense-")


def as_it_was(spec: RunSpec) -> RunSpec:
    """The spec with the former values of all fields whose default changed."""
    values = spec.model_dump()
    for path, value in former_values(spec):
        *groups, name = path.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[name] = value
    return validate(values)


def test_an_edited_plugin_gives_its_own_runs_other_ids_alone(tmp_path: Path) -> None:
    """What the digest stands for: without the recorded one, dense runs keep their ids."""
    now = [run.run_id for run in plan.plan(load_sweep(str(CONFIGS / "seed_replica.yaml")).runs(), tmp_path)]
    for run_id, recorded in zip(now, RECORDED["runs"]["seed_replica.yaml"], strict=True):
        assert (run_id == recorded) == recorded.startswith("dense-")
