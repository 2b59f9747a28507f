"""The command that runs a stored spec again says the same spec, whatever is in it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention.registry import kinds, spec_class
from dsabench.cli.options import overridden
from dsabench.spec.attention import BUILT_IN
from dsabench.spec.config import load_sweep
from dsabench.spec.identity import run_id
from dsabench.spec.rerun_command import command_words, non_default, spec_as_command
from dsabench.spec.run import RunSpec, validate

FINGERPRINT = {"corpus": "c", "tokenizer": "t"}


def parsed(words: list[str]) -> RunSpec:
    """The spec that `dsabench train` reads from these words."""
    assert words[:2] == ["dsabench", "train"]
    flags: dict[str, Any] = {}
    sets = []
    for name, value in zip(words[2::2], words[3::2], strict=True):
        if name == "--set":
            sets.append(value)
        else:
            flags[name] = value if name == "--attention" else int(value)
    fields = {
        "--length": ("length", flags.get("--length")),
        "--attention": ("attention.kind", flags.get("--attention")),
        "--seed": ("seed", flags.get("--seed")),
        "--device": ("engine.device", None),
    }
    spec = overridden("seed", sets, fields, {}).first()
    assert isinstance(spec, RunSpec)
    return spec


def stored(spec: RunSpec) -> dict[str, Any]:
    """The spec as it is read from a run.json."""
    return dict(json.loads(json.dumps(spec.model_dump(mode="json"))))


rates = st.floats(1e-9, 10)
tricky = [
    "null", "true", "1e-3", "0x10", "~", "a: b", "path:my texts/*.jsonl", "- x", "'", '"', "a#b", "a #b", "\\n",
    "\x1b[31m", "2026-01-01", "=", "[a]", "{", "!t",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(tricky)
selections = st.one_of(
    st.builds(lambda k: {"top_k": k}, st.integers(1, 10**6)),
    st.builds(lambda r: {"top_k_ratio": r}, st.floats(1e-9, 1)),
)
indexers = st.fixed_dictionaries(
    {},
    optional={
        "n_heads": st.integers(1, 1024),
        "head_dim": st.integers(1, 256).map(lambda n: 4 * n),
        "loss": st.sampled_from(["kl", "none"]),
        "loss_weight": rates,
        "learning_rate": rates,
        "warmup_share": st.floats(0, 0.99),
    },
)
attentions = st.one_of(
    st.just({"kind": "dense"}),
    st.builds(
        lambda selection, indexer, backend: {"kind": "dsa", **selection, "indexer": indexer, "backend": backend},
        selections,
        indexers,
        st.sampled_from(["auto", "masked", "reference", "triton"]),
    ),
)
trains = st.one_of(
    st.builds(lambda n: {"batch_size": n}, st.integers(1, 10**6)),
    st.builds(lambda n: {"tokens_per_step": n}, st.integers(10**6, 10**7)),
).flatmap(
    lambda size: st.fixed_dictionaries(
        {name: st.just(value) for name, value in size.items()},
        optional={
            "steps": st.integers(1, 10**7),
            "learning_rate": rates,
            "schedule": st.sampled_from(["cosine", "constant"]),
            "grad_clip": st.none() | rates,
            "weight_decay": st.floats(0, 1e30),
        },
    )
)
models = {"n_kv_heads": st.sampled_from([None, 1, 8]), "dropout": st.floats(0, 0.9)}
data = {"source": texts, "tokenizer": texts, "text_column": texts, "max_tokens": st.none() | st.integers(1, 10**9)}
engines = {
    "device": st.sampled_from(["auto", "cuda:1"]),
    "deterministic": st.sampled_from(["auto", True, False]),
    "checkpoint_every": st.none() | st.integers(1, 9),
}
specs = st.fixed_dictionaries(
    {"length": st.integers(2, 10**6), "seed": st.integers(0, 2**32 - 1), "attention": attentions, "train": trains},
    optional={
        "model": st.fixed_dictionaries({}, optional=models),
        "data": st.fixed_dictionaries({}, optional=data),
        "engine": st.fixed_dictionaries({}, optional=engines),
    },
)


@settings(deadline=None, max_examples=60)
@given(values=specs)
def test_the_command_says_the_same_spec_and_the_same_run(values: dict[str, Any]) -> None:
    spec = validate(values)
    again = parsed(command_words(stored(spec)))
    assert again == spec
    assert run_id(again, FINGERPRINT) == run_id(spec, FINGERPRINT)
    line = spec_as_command(stored(spec))
    assert shlex.split(line) == command_words(stored(spec))
    assert line.isprintable(), "what stands in it cannot command a terminal"


@pytest.mark.parametrize("config", ["seed", "quick"])
def test_every_run_of_the_shipped_configs_comes_back(config: str) -> None:
    for spec in load_sweep(config).runs():
        assert parsed(command_words(stored(spec))) == spec


def test_the_default_experiment_needs_no_set() -> None:
    spec = validate({"attention": {"kind": "dsa"}})
    assert spec_as_command(stored(spec)) == "dsabench train --attention dsa --length 256 --seed 42"
    assert non_default(stored(spec)) == {}


def test_every_built_in_variant_has_the_settings_listed_for_it() -> None:
    """What is validated without torch is what the module computes with."""
    assert {kind: spec_class(kind) for kind in kinds()} == BUILT_IN


def test_a_selection_by_number_is_said_once() -> None:
    words = command_words(stored(validate({"attention": {"kind": "dsa", "top_k": 64}, "train": {"batch_size": 16}})))
    assert words[8:] == ["--set", "attention.top_k=64", "--set", "train.batch_size=16"]


def test_a_variant_of_ones_own_comes_back_with_all_its_fields(tmp_path: Path) -> None:
    plugin = tmp_path / "my attention.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from dsabench.attention.dense import Dense\n"
        "from dsabench.attention.registry import register\n"
        "from dsabench.spec.attention import AttentionSpec\n"
        "class MySpec(AttentionSpec):\n"
        "    kind: Literal['mine_again'] = 'mine_again'\n"
        "    words: list[str] = []\n"
        "    width: int\n"
        "@register\n"
        "class Mine(Dense):\n"
        "    spec_class = MySpec\n"
    )
    own = {"kind": "mine_again", "words": ["a, b", "\x1b", "null"], "width": 3}
    spec = validate({"plugins": [str(plugin)], "attention": own, "length": 64})
    assert parsed(command_words(stored(spec))) == spec
    assert non_default(stored(spec))["attention.width"] == 3


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"attention": {}},
        {"attention": {"kind": None}},
        {"model": 3, "train": None, "data": [1]},
        {"attention": {"kind": "dsa", "indexer": 3}, "length": "x"},
        {"unknown": {"\x1b[31m": {"deep": [1, {"a": None}]}}},
        {"attention": {"kind": "gone", "x": [True, None, 1e-9, {}]}},
    ],
)
def test_a_record_of_another_version_still_gives_a_line(spec: dict[str, Any]) -> None:
    assert spec_as_command(spec).startswith("dsabench train")


def test_it_needs_no_torch() -> None:
    code = "import sys; from dsabench.spec.rerun_command import spec_as_command as c; c({'attention': {'kind': 'dsa'}})"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
