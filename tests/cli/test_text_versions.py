"""The versions of the distributions that a text is of: recorded, shown, and named where they differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_site import Site
from shell import Shell

CODE = "".join(f"def function_{i}(value):\n    return value + {i}\n" for i in range(9))
SMALL = [
    "--config", "quick", "--device", "cpu", "--length", "16", "--seed", "1", "--attention", "dense",
    *(one for field in (
        "model.d_model=16", "model.n_heads=2", "model.d_ff=16", "model.n_layers=1", "train.tokens_per_step=32",
        "train.steps=2", "train.eval_tokens=64", "data.tokenizer=bytes", "data.source=packages",
    ) for one in ("--set", field)),
]  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "site")
    made.install("dsabench", requires=["alpha", "beta"])
    made.install("alpha", {f"alpha/{name}.py": f"# {name}\n{CODE}" for name in "abcdef"})
    made.install("beta", {"beta.py": CODE})
    monkeypatch.syspath_prepend(str(made.root))
    return made


def upgrade(site: Site) -> None:
    """alpha 1.1, one file of which is another."""
    shutil.rmtree(site.root / "alpha-1.0.dist-info")
    files = {f"alpha/{name}.py": f"# {name}\n{CODE}" for name in "abcde"} | {"alpha/f.py": f"# new\n{CODE}"}
    site.install("alpha", files, version="1.1")


def test_they_are_recorded_and_named_where_they_differ(shell: Shell, site: Site) -> None:
    code, _, err = shell("train", *SMALL)
    assert code == 0, err
    record = json.loads(shell("runs", "show", "dense", "--json")[1])
    assert record["environment"]["text_versions"] == {"alpha": "1.0", "beta": "1.0"}
    assert "text_versions.alpha" in shell("runs", "show", "dense", "--all")[1]
    code, out, err = shell("reproduce", "dense")
    assert code == 0 and "same bits" in out, err

    upgrade(site)
    code, out, err = shell("reproduce", "dense")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "packages has the digest" in err and err.endswith("can be reproduced: alpha 1.0, not 1.1\n")
    code, _, err = shell("train", *SMALL)
    assert code == 0, err
    first, second = sorted(path.name for path in Path("runs").glob("dense-*"))
    if first != record["run_id"]:
        first, second = second, first
    out = shell("runs", "diff", first, second)[1]
    assert "same spec, other corpus, other environment: text_versions.alpha 1.0 -> 1.1" in " ".join(out.split())
    report = shell("report", "--all")
    assert report[0] in (0, 2) and "text_versions" not in Path("results/report.html").read_text()
