"""Small models that others trained, as folders of `transformers`, and a stand-in for the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsabench.data.tokenizer import train_bpe
from dsabench.model.transformer import Transformer, build
from dsabench.model.transformers_folder import write_folder
from dsabench.spec import foreign_folder
from dsabench.spec.run import validate

ROWS = 320
"""Rows of the embeddings: more than the tokenizer has ids, as in models that are padded."""

MODEL: dict[str, Any] = {
    "d_model": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 40, "n_experts": 1, "experts_per_token": 1,
    "embedding_std": 1.0, "norm_eps": 3e-3, "rope_base": 500.0, "vocab_size": ROWS,
}  # fmt: skip
"""A tied Llama."""


def foreign_folder_at(folder: Path, corpus: Path | None, **changes: Any) -> Transformer:
    """Write a model with random weights, and a tokenizer of the corpus where one is given, and return the model."""
    folder.mkdir(parents=True)
    spec = validate({"length": 32, "attention": {"kind": "dense"}, "model": {**MODEL, **changes}})
    model = build(spec, spec.model.rows(0))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.1 * noise)
    write_folder(model, folder, None, None, {})
    if corpus is not None:
        train_bpe([path.read_text() for path in sorted(corpus.glob("*.txt"))], 300).save(folder / "tokenizer.json")
    return model


class Hub:
    """A stand-in for huggingface_hub: it gives its folder, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[str, str | None, list[str]]]()
        self.error: Exception | None = None

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], etag_timeout: float
    ) -> str:
        """The folder, or the error."""
        assert etag_timeout <= 10
        self.asked.append((name, revision, allow_patterns))
        if self.error is not None:
            raise self.error
        return str(self.folder)


def hub_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Put a hub that has the folder in the place of huggingface_hub; a process asks it for a model once."""
    hub = Hub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    foreign_folder._downloaded.cache_clear()
    return hub
