"""A cache of its own for each test, and folders of small texts."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dsabench.spec.data_settings import DataSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DSABENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def texts() -> Callable[..., dict[str, str]]:
    """Different texts of made-up words: texts(n, words=200, seed=0) -> {name: text}."""

    def make(n: int, words: int = 200, seed: int = 0) -> dict[str, str]:
        random = np.random.default_rng(seed)
        vocabulary = ["".join(random.choice(list("abcdefgh"), 5)) for _ in range(60)]
        return {f"{i:03}.txt": f"{i}: " + " ".join(random.choice(vocabulary, words)) + "\n" for i in range(n)}

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., DataSpec]:
    """Write {name: content} below a folder and give the spec that reads it: folder(files, tokenizer="bytes", ...)."""

    def make(files: Mapping[str, str | bytes], *, name: str = "corpus", only: str = "", **fields: object) -> DataSpec:
        root = tmp_path / name
        for relative, content in files.items():
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return DataSpec.model_validate(
            {"source": f"path:{root / only if only else root}", "tokenizer": "bytes", **fields}
        )

    return make
