"""Checkpoints from somebody else: never unpickled, and a damaged or huge one is told before anything is built."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Bomb, rewrite, tiny
from resealed import unseal
from safetensors.torch import load_file, save_file
from shell import Shell

import dsabench
from dsabench import load_spec, train
from dsabench.engine import loop
from dsabench.errors import StoreError
from dsabench.store import (
    find_checkpoint,
)


@pytest.fixture
def trained(shell: Shell, corpus: Path) -> Path:
    """The checkpoint of a finished run."""
    record = train(load_spec("quick", tiny(corpus, **{"attention.kind": "dsa", "attention.top_k": 4})), "runs")
    folder = find_checkpoint("runs", record.run_id)
    assert folder is not None
    unseal(folder.parent)  # whoever means harm makes no seal
    return folder


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded(
    shell: Shell, trained: Path, tmp_path: Path, form: str, name: str
) -> None:
    canary = tmp_path / "canary"
    with (trained / name).open("wb") as file:
        (pickle.dump if form == "pickle" else torch.save)(Bomb(canary), file)
    code, _, err = shell("visualize-selection")
    assert code == 2 and err.count("\n") == 1 and f"{name} cannot be read" in err
    assert not canary.exists()


@pytest.mark.parametrize(
    "state",
    [
        '{"vocab_size": 1e3, "step": 3}', '{"vocab_size": true, "step": 3}', '{"vocab_size": -4, "step": 3}', "[]", "{",
        '{"vocab_size": 99999999999999, "step": 3}', "[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", '"\\ud800"',
    ],
)  # fmt: skip
def test_any_state_json_is_read_or_refused(trained: Path, state: str) -> None:
    (trained / "state.json").write_text(state)
    with pytest.raises(StoreError, match=r"state\.json"):
        dsabench.load_model("runs", trained.parent.name)


@pytest.mark.parametrize("field", ["d_model", "d_ff", "n_layers"])
def test_a_record_that_asks_for_a_huge_model_is_found_out_before_it_is_built(trained: Path, field: str) -> None:
    path = trained.parent / "run.json"
    spec = json.loads(path.read_text())["spec"]
    huge = {"d_model": 65_536, "d_ff": 10**9, "n_layers": 200}[field]
    rewrite(path, spec=spec | {"model": spec["model"] | {field: huge}})
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"model\.safetensors holds no .* of shape"):
        dsabench.load_model("runs", trained.parent.name)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("damage", ["pickle", "other name", "other shape", "step"])
def test_a_damaged_optimizer_is_one_message(
    shell: Shell, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    spec = load_spec("quick", tiny(corpus, **{"train.steps": 6, "engine.checkpoint_every": 2}))
    save = loop.checkpoint.save

    def killed(*arguments: Any) -> None:
        if list(Path("runs").glob("*/checkpoint")):
            monkeypatch.setattr(loop.checkpoint, "save", save)
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop.checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(spec, "runs")
    (path,) = Path("runs").glob("*/checkpoint/optimizer.safetensors")
    unseal(path.parent.parent)  # with a seal the damage is seen before, and the run begins anew
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("/exp_avg"))
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    elif damage == "step":
        rewrite(path.with_name("state.json"), step="2", seconds="x")
    else:
        values = tensors.pop(name)
        save_file(tensors | ({"x/exp_avg": values} if damage == "other name" else {name: values.flatten()[:3]}), path)
    with pytest.raises(StoreError, match=r"state\.json" if damage == "step" else r"optimizer\.safetensors"):
        train(spec, "runs")
    assert not (tmp_path / "canary").exists()
