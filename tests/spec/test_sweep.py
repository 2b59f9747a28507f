"""Reading, overriding and expanding sweeps; the message for each thing that can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention import registry
from dsabench.errors import DsabenchError, SpecError
from dsabench.spec.config import load_sweep, shipped_configs
from dsabench.spec.identity import flatten, run_id
from dsabench.spec.override import parse_override
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.sweep import Sweep


def with_override(text: str, config: str = "seed") -> Sweep:
    sweep = load_sweep(config)
    path, value = parse_override(text)
    sweep.set(path, value, f"--set {path}: ")
    return sweep


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_seed_config_is_the_experiment_of_the_design() -> None:
    specs = load_sweep().runs()
    assert len(specs) == 30
    assert {(s.length, s.batch_size, s.tokens_per_step) for s in specs} == {
        (64, 64, 4096),
        (128, 32, 4096),
        (256, 16, 4096),
    }
    assert {s.attention.kind for s in specs} == {"dense", "dsa"}
    assert {s.seed for s in specs} == {42, 43, 44, 45, 46}
    assert {s.train.steps for s in specs} == {1000}


def test_the_quick_config_is_18_runs_at_a_quarter() -> None:
    specs = load_sweep("quick").runs()
    assert len(specs) == 18
    assert {(s.length, s.attention.n_selected(s.length)) for s in specs if s.attention.kind == "dsa"} == {
        (64, 16),
        (128, 32),
        (256, 64),
    }


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configs_are_valid(name: str) -> None:
    assert load_sweep(name).runs()


BAD = {
    "train.learning_rat=1": ["unknown field train.learning_rat", "did you mean learning_rate?"],
    "lenght=64": ["unknown field lenght", "did you mean length?"],
    "train.steps=abc": ["train.steps = 'abc'", "a whole number at least 1"],
    "train.steps=1000.0": ["train.steps = 1000.0", "a whole number at least 1"],
    "length=0": ["length = 0", "a whole number at least 2"],
    "length=true": ["length = True", "a whole number"],
    "attention.top_k_ratio=0": ["attention.top_k_ratio = 0", "a number above 0 and at most 1"],
    "attention.top_k_ratio=1.5": ["attention.top_k_ratio = 1.5", "a number above 0 and at most 1"],
    "attention.top_kk=3": ["unknown field attention.top_kk", "did you mean top_k?"],
    "attention.indexer.head_dim=6": ["attention.indexer.head_dim = 6", "a multiple of 4"],
    "attention.kind=dnse": ["attention.kind = 'dnse'", "did you mean 'dense'?"],
    "attention=3": ["attention = 3", "a mapping"],
    "train=fast": ["train = 'fast'", "a mapping with the fields steps"],
    "train.steps.x=1": ["train.steps has no field x"],
    "train.schedule=cosin": ["one of cosine, constant", "did you mean cosine?"],
    "model.n_heads=7": ["n_heads = 7 does not divide d_model = 256", "near it, 1, 2, 4, 8 would"],
    "model.n_kv_heads=3": ["n_kv_heads = 3 does not divide n_heads = 8"],
    "model.experts_per_token=5": ["experts_per_token = 5 is more than n_experts = 4"],
    "engine.device=gpu": ["'gpu' is not a device", "cuda:N"],
    "data.val_share=1": ["data.val_share = 1", "above 0 and below 1"],
    "seed=-1": ["seed = -1", "at least 0"],
    "train.learning_rate=.inf": ["train.learning_rate = inf"],
    "train.learning_rate=.nan": ["train.learning_rate = nan"],
    "attention.kind=[dense]": ["attention.kind = '[dense]' is not a known attention", "did you mean 'dense'?"],
    "plugins=[nowhere.py]": ["plugins: nowhere.py is not a file"],
    "train.steps=[1": ["not valid YAML"],
    "train.steps=!!python/object:os.system x": ["YAML tags", "not accepted"],
    "train.steps": ["expected FIELD=VALUE"],
}


@pytest.mark.parametrize("override", BAD)
def test_each_mistake_gets_one_message_that_names_it(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_override(override).runs()
    for part in BAD[override]:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_problem_of_a_spec_is_listed() -> None:
    with pytest.raises(SpecError) as caught:
        validate({"length": 0, "train": {"steps": -1}, "attention": {"kind": "dsa", "top_k": 0}})
    for part in ("length = 0", "train.steps = -1", "attention.top_k = 0"):
        assert part in str(caught.value)


def test_a_file_s_mistake_is_named_by_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "base:\n  length: 64\n  train:\n    steps: many\n")
    with pytest.raises(SpecError, match=r"my\.yaml:4: train\.steps = 'many' is not accepted"):
        load_sweep(path).runs()
    path = written(tmp_path, "base:\n  length: 64\naxis:\n  seed: [1]\n")
    with pytest.raises(SpecError, match=r"my\.yaml:3: unknown field axis; did you mean axes\?"):
        load_sweep(path)
    path = written(tmp_path, "base: {}\naxes:\n  train.stepz: [1]\n")
    with pytest.raises(SpecError, match=r"my\.yaml:3: unknown field train\.stepz; did you mean steps\?"):
        load_sweep(path)
    path = written(tmp_path, "base:\n  length: 64\n length: 3\n")
    with pytest.raises(SpecError, match=r"my\.yaml:\d+ is not valid YAML"):
        load_sweep(path)
    path = written(tmp_path, "base:\n  length: 64\n  length: 128\n")
    with pytest.raises(SpecError, match=r"duplicate key"):
        load_sweep(path)


def test_a_bomb_of_anchors_is_refused(tmp_path: Path) -> None:
    lines = ["base:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(SpecError, match="more than 100000 values"):
        load_sweep(written(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- 1\n- 2\n", b"", b"3", b"base: 3\n", b"{1: 2}"])
def test_files_that_are_no_config_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"my\.yaml"):
        load_sweep(str(path))


def test_an_unknown_config_name_lists_the_known() -> None:
    with pytest.raises(SpecError, match=r"no config named 'quik'; did you mean quick\?"):
        load_sweep("quik")
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_sweep("nowhere.yaml")


def test_yaml_is_1_2(tmp_path: Path) -> None:
    path = written(tmp_path, "base:\n  train: {learning_rate: 1e-3}\n  data: {text_column: no}\n")
    spec = load_sweep(path).first()
    assert spec.train.learning_rate == 1e-3
    assert spec.data.text_column == "no"


def test_an_axis_that_a_variant_lacks_is_dropped_for_it() -> None:
    sweep = load_sweep()
    sweep.set_axis("attention.top_k_ratio", [0.25, 0.5], "")
    sweep.set_axis("length", [64], "")
    sweep.set_axis("seed", [1], "")
    specs = sweep.runs()
    assert [(s.attention.kind, getattr(s.attention, "top_k_ratio", None)) for s in specs] == [
        ("dense", None),
        ("dsa", 0.25),
        ("dsa", 0.5),
    ]


def test_attention_keeps_the_base_s_fields_that_the_variant_has() -> None:
    assert with_override("attention.kind=dense").first().attention.model_dump() == {"kind": "dense"}
    chosen = with_override("attention.kind=dsa", "quick").first().attention
    assert (chosen.top_k_ratio, chosen.indexer.head_dim) == (0.25, 32)  # type: ignore[attr-defined]


def test_an_override_clears_its_alternative() -> None:
    spec = with_override("train.batch_size=4").first()
    assert (spec.train.batch_size, spec.train.tokens_per_step, spec.batch_size) == (4, None, 4)
    specs = with_override("attention.top_k=7").runs()
    assert {s.attention.n_selected(s.length) for s in specs} == {None, 7}
    with pytest.raises(SpecError, match="top_k_ratio and top_k say the same thing"):
        validate({"attention": {"kind": "dsa", "top_k": 3, "top_k_ratio": 0.5}})


def test_two_flags_that_replace_each_other_are_refused() -> None:
    sweep = with_override("attention.top_k=64")
    with pytest.raises(SpecError, match=r"attention\.top_k_ratio and attention\.top_k, also given, replace each other"):
        sweep.set_axis("attention.top_k_ratio", [0.5], "--top-k-ratios: ")


def test_an_override_replaces_an_axis_and_train_takes_first_values() -> None:
    assert {s.length for s in with_override("length=32").runs()} == {32}
    first = load_sweep().first()
    assert (first.length, first.attention.kind, first.seed) == (64, "dense", 42)


def test_a_field_that_the_chosen_attention_lacks_is_not_lost() -> None:
    """seed's first attention is dense: a single run asked for k = 4 must not silently be a dense one."""
    with pytest.raises(SpecError, match=r"attention\.top_k is not a field of attention dense.*--attention dsa"):
        with_override("attention.top_k=4").first()
    assert with_override("attention={kind: dsa, top_k: 4}").first().attention.kind == "dsa"
    assert len(with_override("attention.top_k=4").runs()) == 30


def test_setting_a_whole_section_drops_the_axes_inside_it() -> None:
    sweep = load_sweep()
    sweep.set_axis("train.learning_rate", [1e-3, 2e-3], "")
    sweep.set("train", {"steps": 7}, "")
    assert {(s.train.steps, s.train.learning_rate) for s in sweep.runs()} == {(7, 1e-3)}


def test_two_axes_that_replace_each_other_are_refused(tmp_path: Path) -> None:
    text = "axes:\n  attention.top_k: [4]\n  attention.top_k_ratio: [0.5]\n"
    with pytest.raises(SpecError, match="replace each other"):
        load_sweep(written(tmp_path, text))
    with pytest.raises(SpecError, match="engine is no part of what a run is"):
        load_sweep(written(tmp_path, "axes:\n  engine.precision: [fp32, bf16]\n"))


def test_a_length_that_does_not_divide_the_step_rounds_the_batch() -> None:
    assert validate({"length": 100}).batch_size == 41
    with pytest.raises(SpecError, match=r"train\.tokens_per_step = 4096 holds no window of length 10000"):
        validate({"length": 10_000})


# Identity


def test_the_id_reads_well_and_says_what_differs() -> None:
    spec = validate({"length": 64, "seed": 7, "attention": {"kind": "dense"}})
    assert run_id(spec, {}).startswith("dense-L64-s7-")
    variants: list[dict[str, Any]] = [
        {},
        {"train": {"steps": 5}},
        {"model": {"d_ff": 32}},
        {"data": {"max_tokens": 9}},
        {"attention": {"kind": "dense"}},
        {"attention": {"kind": "dsa", "top_k": 3}},
    ]
    ids = {run_id(validate(values), {}) for values in variants}
    assert len(ids) == len(variants)
    assert run_id(spec, {"corpus": "a"}) != run_id(spec, {"corpus": "b"})


def test_engine_paths_and_names_stay_out_of_the_id(tmp_path: Path) -> None:
    base = run_id(validate({}), {})
    assert run_id(validate({"engine": {"device": "cpu", "checkpoint_every": 3}}), {}) == base
    one, other = (run_id(validate({"data": {"source": f"path:{p}"}}), {"corpus": "x"}) for p in ("a.txt", "b.txt"))
    assert one == other != base


def test_a_field_at_its_default_does_not_count() -> None:
    """So that a new field with a default renames no stored run."""
    spelled = validate(RunSpec().model_dump())
    assert run_id(spelled, {}) == run_id(RunSpec(), {})


PATHS = sorted(path for path in flatten(RunSpec().model_dump()) if path != "plugins")
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS) | st.text(max_size=12), VALUES), max_size=3))
def test_any_overrides_give_valid_runs_or_a_clean_error(overrides: list[tuple[str, Any]]) -> None:
    sweep = load_sweep("quick")
    try:
        for path, value in overrides:
            sweep.set(path, value, "--set: ")
        for spec in sweep.runs():
            assert RunSpec.model_validate(spec.model_dump()) == spec
    except DsabenchError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_as_a_config_gives_a_clean_error_or_a_sweep(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.yaml"
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        try:
            load_sweep(str(path)).runs()
        except DsabenchError as error:
            assert str(error)


# Plugins


def test_a_plugin_s_variant_is_validated_like_a_built_in_one(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from dsabench.attention.dense import Dense\n"
        "from dsabench.attention.registry import register\n"
        "from dsabench.spec.attention import AttentionSpec\n"
        "class MineSpec(AttentionSpec):\n"
        "    kind: Literal['mine'] = 'mine'\n"
        "    size: int = 3\n"
        "@register\n"
        "class Mine(Dense):\n"
        "    spec_class = MineSpec\n"
    )
    sweep = load_sweep()
    sweep.set("plugins", [str(plugin)], "")
    sweep.set("attention.kind", "mine", "")
    sweep.set("attention.size", 4, "")
    assert sweep.first().attention.model_dump() == {"kind": "mine", "size": 4}
    sweep.set("attention.size", "x", "--set attention.size: ")
    with pytest.raises(SpecError, match=r"attention\.size = 'x' is not accepted; accepted: a whole number"):
        sweep.first()


def test_a_plugin_cannot_replace_a_built_in_attention(tmp_path: Path) -> None:
    plugin = tmp_path / "my_dense.py"
    plugin.write_text(Path(registry.__file__).with_name("dense.py").read_text(encoding="utf-8"))
    before = registry.variant("dense")
    with pytest.raises(SpecError, match=r"my_dense\.py:\d+: attention kind 'dense' is built in"):
        validate_with(plugin)
    assert registry.variant("dense") is before


def test_a_plugin_counts_in_its_own_runs_alone(tmp_path: Path) -> None:
    """Editing a plugin renames the runs of its variants, not the dense ones; a required field is no crash."""
    from dsabench.sweeps import origin

    source = (
        "from typing import Literal\n"
        "from dsabench.attention.dense import Dense\n"
        "from dsabench.attention.registry import register\n"
        "from dsabench.spec.attention import AttentionSpec\n"
        "class OursSpec(AttentionSpec):\n"
        "    kind: Literal['ours'] = 'ours'\n"
        "    window: int\n"
        "@register\n"
        "class Ours(Dense):\n"
        "    spec_class = OursSpec\n"
    )
    ids = []
    for text in (source, source + "# edited\n"):
        plugin = tmp_path / "ours.py"
        plugin.write_text(text)
        specs = [
            validate({"plugins": [str(plugin)], "attention": {"kind": "ours", "window": 3}}),
            validate({"plugins": [str(plugin)], "attention": {"kind": "dense"}}),
        ]
        ids.append([run_id(spec, origin.fingerprint(spec, {}, None)) for spec in specs])
    assert ids[0][0] != ids[1][0]
    assert ids[0][1] == ids[1][1] == run_id(validate({"attention": {"kind": "dense"}}), {})


def test_a_broken_plugin_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("1 / 0\n")
    with pytest.raises(SpecError, match=r"broken\.py:1 fails to import: ZeroDivisionError"):
        validate_with(plugin)


def validate_with(plugin: Path) -> None:
    sweep = load_sweep()
    sweep.set("plugins", [str(plugin)], "")
    sweep.first()
