"""PATH and hf:NAME: a stand-in for huggingface_hub, no library, no network, names that are none."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_models import Hub, hub_with

from dsabench.errors import CheckpointError, SpecError
from dsabench.spec import foreign_folder as foreign_folder_module
from dsabench.spec.foreign_folder import foreign_config, foreign_folder, is_foreign, pinned

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return hub_with(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """A process asks the hub for a model once."""
    foreign_folder_module._downloaded.cache_clear()
    yield
    foreign_folder_module._downloaded.cache_clear()


def test_a_model_of_the_hub_is_downloaded_without_pickles(hub: Hub) -> None:
    (hub.folder / "model.safetensors").write_bytes(b"weights")
    assert foreign_folder("hf:some/model@v2") == hub.folder
    assert {(name, revision) for name, revision, _ in hub.asked} == {("some/model", "v2")}
    assert hub.asked[0][2] == ["config.json", "tokenizer.json"], "before the weights"
    patterns = hub.asked[1][2]
    assert "model.safetensors" in patterns
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in patterns)
    assert foreign_folder("hf:some/model@v2") == hub.folder
    assert len(hub.asked) == 2, "once a process"


def test_a_model_without_safetensors_is_refused(hub: Hub) -> None:
    """Published as a pickle, which is not even downloaded; or offline, with no more than config.json in the cache."""
    with pytest.raises(CheckpointError, match=r"hf:some/model has no model\.safetensors .* pickle.* no network"):
        foreign_folder("hf:some/model")


def test_a_model_of_the_hub_is_pinned_to_its_commit(tmp_path: Path) -> None:
    commit = tmp_path / "snapshots" / ("0123456789" * 4)
    assert pinned("hf:some/model", commit) == pinned("hf:some/model@main", commit) == f"hf:some/model@{commit.name}"
    assert pinned("hf:some/model", tmp_path) == "hf:some/model"
    assert pinned(str(commit), commit) == str(commit)


def test_its_config_needs_no_weights(hub: Hub) -> None:
    assert foreign_config("hf:some/model").model.d_model == 8
    assert hub.asked == [("some/model", None, ["config.json", "tokenizer.json"])]


def test_a_model_that_cannot_be_read_is_refused_before_its_weights(hub: Hub) -> None:
    (hub.folder / "config.json").write_text(json.dumps({**CONFIG, "mlp_bias": True}))
    with pytest.raises(CheckpointError, match="mlp_bias"):
        foreign_folder("hf:some/model")
    assert len(hub.asked) == 1


def test_a_failure_is_one_message(hub: Hub) -> None:
    hub.error = RuntimeError("404 for the model\nwith a long story")
    with pytest.raises(
        CheckpointError, match=r"hf:some/model cannot be downloaded: RuntimeError: 404 for the model; ch"
    ):
        foreign_folder("hf:some/model")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs the package huggingface_hub .* pip install 'dsabench\[hf\]'"):
        foreign_folder("hf:some/model")


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, offline: what is in no cache cannot be downloaded, and no address is asked for."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    def refuse(*given: Any, **named: Any) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"hf:dsabench/none cannot be downloaded: .*check the name and the network"
    ):
        foreign_folder("hf:dsabench/none")


@pytest.mark.parametrize("has_weights", [True, False])
@pytest.mark.parametrize("name", ["hf:some/model", "hf:some/model@main"])
def test_offline_from_the_cache(name: str, has_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, offline, with a cache as it lays it out: what is there is taken, and its commit named."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    commit = "0123456789" * 4
    snapshot = tmp_path / "models--some--model/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "models--some--model/refs").mkdir()
    (tmp_path / "models--some--model/refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pinned(name, foreign_config(name).folder) == f"hf:some/model@{commit}"
    if has_weights:
        (snapshot / "model.safetensors").write_bytes(b"weights")
        assert foreign_folder(name) == foreign_folder(f"hf:some/model@{commit}") == snapshot
    else:
        with pytest.raises(CheckpointError, match=r"has no model\.safetensors .*there was no network"):
            foreign_folder(name)


def test_a_folder_is_taken_as_it_is(hub: Hub) -> None:
    assert foreign_folder(str(hub.folder)) == hub.folder
    assert foreign_config(str(hub.folder)).model.n_heads == 2
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:", "names no model; write hf:OWNER/NAME"),
        ("no/such/folder", "no/such/folder: no such folder; accepted: a folder with config.json"),
        ("{folder}/config.json", "is a file; name the folder"),
    ],
)
def test_names_that_are_none(name: str, told: str, hub: Hub) -> None:
    with pytest.raises(SpecError, match=told):
        foreign_folder(name.replace("{folder}", str(hub.folder)))


def test_what_is_foreign(hub: Hub, tmp_path: Path) -> None:
    """A folder of dsabench's own is not, even with a config.json beside; and what is not there is nothing."""
    assert is_foreign("hf:some/model") and is_foreign(hub.folder)
    assert not any(map(is_foreign, (tmp_path / "none", hub.folder / "config.json", "x" * 5000, "a\0b")))
    for own in ("state.json", "run.json"):
        (hub.folder / own).write_text("{}")
        assert not is_foreign(hub.folder)
        (hub.folder / own).unlink()
