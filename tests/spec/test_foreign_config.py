"""config.json of models that others trained: what is read, what is refused by its name, what contradicts a spec."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsabench.errors import CheckpointError, SpecError
from dsabench.spec.foreign_config import ForeignConfig, read_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
}

SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

QWEN: dict[str, Any] = {
    **{name: LLAMA[name] for name in LLAMA if name not in ("head_dim", "attention_bias", "mlp_bias", "pretraining_tp")},
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 21,
}


def config(folder: Path, values: Any) -> ForeignConfig:
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return read_config(folder)


def test_the_fields_of_llama_3(tmp_path: Path) -> None:
    found = config(tmp_path, {**LLAMA, "rope_scaling": SCALING})
    model = found.model
    assert (model.d_model, model.n_layers, model.n_heads, model.kv_heads, model.d_ff) == (2048, 16, 32, 8, 8192)
    assert (model.head_dim, model.vocab_size, model.tied_head) == (64, 128256, True)
    assert (model.norm_eps, model.rope_base, model.embedding_scale) == (1e-5, 500000.0, 1.0)
    assert (model.n_experts, model.experts_per_token, model.qkv_bias, model.qk_norm) == (1, 1, False, False)
    assert model.rope_scaling is not None
    assert model.rope_scaling.model_dump() == {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192
    }  # fmt: skip
    assert found.longest == 131072
    assert found.fields["n_kv_heads"] == 8
    assert "head_width" not in found.fields, "64 is 2048 / 32, what null means"


def test_version_5_says_the_same_in_other_fields(tmp_path: Path) -> None:
    old = config(tmp_path, {**LLAMA, "rope_scaling": SCALING})
    new = {name: value for name, value in LLAMA.items() if name not in ("rope_theta", "torch_dtype")}
    new |= {"rope_parameters": {"rope_theta": 500000.0, **SCALING}, "dtype": "bfloat16"}
    assert config(tmp_path, new).fields == old.fields


def test_what_silence_means(tmp_path: Path) -> None:
    """By the classes of transformers: Qwen3's heads are 128 wide, Qwen's KV heads 32, Llama's as many as its heads."""
    few = {name: value for name, value in LLAMA.items() if name in ("vocab_size", "hidden_size", "intermediate_size")}
    few |= {"num_hidden_layers": 2, "num_attention_heads": 64}
    models = {}
    for kind in ("Llama", "Qwen2", "Qwen3"):
        models[kind] = config(tmp_path, {**few, "architectures": [f"{kind}ForCausalLM"]}).model
        assert (models[kind].rope_base, models[kind].norm_eps, models[kind].tied_head) == (10_000.0, 1e-6, False)
    assert {kind: model.kv_heads for kind, model in models.items()} == {"Llama": 64, "Qwen2": 32, "Qwen3": 32}
    assert {kind: model.head_dim for kind, model in models.items()} == {"Llama": 32, "Qwen2": 32, "Qwen3": 128}
    assert {kind: (model.qkv_bias, model.qk_norm) for kind, model in models.items()} == {
        "Llama": (False, False), "Qwen2": (True, False), "Qwen3": (False, True)
    }  # fmt: skip


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bias of the output": ({**LLAMA, "attention_bias": True}, "attention_bias = true cannot be read: .* bias"),
    "bias of the mlp": ({**LLAMA, "mlp_bias": True}, "mlp_bias = true cannot be read"),
    "dropout": ({**LLAMA, "attention_dropout": 0.1}, r"attention_dropout = 0\.1 cannot be read"),
    "activation": ({**LLAMA, "hidden_act": "gelu"}, 'hidden_act = "gelu" cannot be read; accepted: silu'),
    "yarn": ({**QWEN, "rope_scaling": YARN}, 'rope_type = "yarn" cannot be read; accepted: default, llama3'),
    "yarn of version 5": ({**QWEN, "rope_parameters": {**YARN, "rope_type": "yarn"}}, 'rope_type = "yarn"'),
    "half a scaling": (
        {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "lacks low_freq_factor, high",
    ),
    "partial": ({**LLAMA, "partial_rotary_factor": 0.5}, r"partial_rotary_factor"),
    "mscale": ({**LLAMA, "rope_scaling": {**SCALING, "mscale": 2}}, "mscale = 2 of the rotary embedding"),
    "window": ({**QWEN, "use_sliding_window": True}, "use_sliding_window = true cannot be read: .* sliding window"),
    "window by layer": (
        {**QWEN, "layer_types": ["full_attention", "sliding_attention"]},
        'layer_types names "sliding_attention"; accepted: full_attention',
    ),
    "window of llama": ({**LLAMA, "sliding_window": 4096}, "sliding_window = 4096 is not known"),
    "quantised": ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config = .* quantised weights"),
    "own code": ({**LLAMA, "auto_map": {"AutoModel": "x.Y"}}, "auto_map = .* not executed"),
    "unknown": ({**LLAMA, "logit_scale": 0.0625}, r"logit_scale = 0\.0625 is not known.*take it out"),
    "another class": ({**LLAMA, "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*accepted: LlamaFor"),
    "two classes": ({**LLAMA, "architectures": ["LlamaForCausalLM"] * 2}, "cannot be read; accepted"),
    "no class": ({"model_type": "gpt2"}, 'architectures = null .model_type = "gpt2". cannot be read'),
    "two types": ({**LLAMA, "model_type": "qwen2"}, "LlamaForCausalLM and model_type = .qwen2. contradict"),
    "two thetas": (
        {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        r"rope_parameters.rope_theta = 10000.0 and rope_theta = 500000.0 contradict",
    ),
    "a third theta": (
        {**LLAMA, "rope_scaling": {**SCALING, "rope_theta": 1e4}},
        r"rope_scaling.rope_theta = 10000.0 and rope_theta = 500000.0 contradict",
    ),
    "two scalings": (
        {**LLAMA, "rope_scaling": SCALING, "rope_parameters": {**SCALING, "factor": 8.0}},
        r"factor = 8.0 of rope_parameters and 32.0 of rope_scaling contradict",
    ),
    "no size": ({**LLAMA, "hidden_size": None}, "does not say hidden_size"),
    "text": ({**LLAMA, "hidden_size": "2048"}, 'hidden_size = "2048": .*integer'),
    "odd heads": ({**LLAMA, "head_dim": 63}, "head_dim = 63: "),
    "groups": ({**LLAMA, "num_key_value_heads": 5}, "n_kv_heads = 5 does not divide n_heads = 32"),
    "huge": ({**LLAMA, "intermediate_size": 2**40}, "intermediate_size = 1099511627776 is more than any"),
    "negative": ({**LLAMA, "vocab_size": -1}, "vocab_size = -1: "),
    "no number": ({**LLAMA, "rms_norm_eps": math.nan}, "rms_norm_eps = NaN: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_the_function_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    values, told = REFUSED[case]
    with pytest.raises(CheckpointError, match=told) as raised:
        config(tmp_path, values)
    assert str(tmp_path / "config.json") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"model_type": '])
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        config(tmp_path, text)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json cannot be read: No such file"):
        read_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.sampled_from(["default", "llama3", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "type", *SCALING]), inner, max_size=5)
    ),
    max_leaves=6,
)
FIELDS = sorted({*LLAMA, *QWEN, "rope_parameters", "rope_scaling", "layer_types", "partial_rotary_factor", "auto_map"})


@settings(max_examples=300, deadline=None)
@given(values=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
@example(values={"layer_types": 5})
@example(values={"architectures": [["LlamaForCausalLM"]]})
@example(values={"rope_parameters": {"rope_type": "llama3", **dict.fromkeys(list(SCALING)[1:], "x")}})
def test_any_value_of_a_field_is_read_or_refused(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    try:
        found = config(folder, {**LLAMA, **values})
        assert found.model.n_experts == 1
        assert found.agreed(found.fields) == found.fields
    except CheckpointError as error:
        assert "config.json" in str(error)


def test_off_is_as_good_as_absent(tmp_path: Path) -> None:
    plain = config(tmp_path, LLAMA).fields
    off = {
        "sliding_window": None,
        "logit_scale": 0,
        "quantization_config": None,
        "rope_interleaved": False,
        "auto_map": {},
    }
    assert config(tmp_path, {**LLAMA, **off}).fields == plain


@pytest.mark.parametrize(
    ("given_fields", "told"),
    [
        ({"d_model": 512}, "model.d_model = 512 contradicts hidden_size of .*, where it is 2048"),
        ({"n_kv_heads": 1}, "model.n_kv_heads = 1 contradicts num_key_value_heads of .*, where it is 8"),
        ({"n_kv_heads": None}, "model.n_kv_heads = null contradicts num_key_value_heads"),
        ({"head_width": 128}, "model.head_width = 128 contradicts head_dim of .*, where it is 64"),
        ({"n_experts": 4}, "model.n_experts = 4 contradicts the architecture LlamaForCausalLM of .*, where it is 1"),
        ({"qk_norm": True}, "model.qk_norm = true contradicts the architecture LlamaForCausalLM"),
        ({"rope_scaling": None}, "model.rope_scaling = null contradicts the llama3 scaling"),
        ({"norm_eps": 1e-6, "d_ff": 4}, r"(?s)model.norm_eps = 1e-06 contradicts rms_norm_eps.*\n.*model.d_ff = 4"),
        ({"d_model": "wide"}, 'model.d_model = "wide" contradicts'),
    ],
    ids=str,
)
def test_a_field_that_contradicts_names_both(given_fields: dict[str, Any], told: str, tmp_path: Path) -> None:
    found = config(tmp_path, {**LLAMA, "rope_scaling": SCALING})
    with pytest.raises(SpecError, match=told):
        found.agreed(given_fields)


def test_fields_that_agree_and_those_that_are_free(tmp_path: Path) -> None:
    found = config(tmp_path, LLAMA)
    same = {"d_model": 2048, "n_kv_heads": 8, "head_width": 64, "n_experts": 1, "rope_base": 500_000}
    assert found.agreed(same) == dict(found.fields)
    assert found.agreed({"dropout": 0.1, "balance_loss_weight": 0.0}) == {
        "dropout": 0.1, "balance_loss_weight": 0.0, **found.fields
    }  # fmt: skip


def test_the_tokenizer_is_the_folders(tmp_path: Path) -> None:
    assert config(tmp_path, LLAMA).tokenizer is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert config(tmp_path, LLAMA).tokenizer == tmp_path / "tokenizer.json"


def test_a_tokenizer_that_is_given_must_be_the_models_own(tmp_path: Path) -> None:
    other, same = tmp_path / "other.json", tmp_path / "same.json"
    other.write_text("{}")
    found = config(tmp_path, LLAMA)
    for none in (None, "bpe", "bytes"):
        with pytest.raises(CheckpointError, match="holds no tokenizer"):
            found.tokenizer_agreed(none)
    assert found.tokenizer_agreed(str(other)) == str(other)
    for path in (tmp_path / "tokenizer.json", same):
        path.write_text('{"model": 1}')
    assert found.tokenizer_agreed(None) == str(tmp_path / "tokenizer.json")
    assert found.tokenizer_agreed(str(same)) == str(same)
    for wrong in ("bpe", "bytes", str(other)):
        with pytest.raises(SpecError, match=r"data.tokenizer = '.*' contradicts .*tokenizer.json; leave"):
            found.tokenizer_agreed(wrong)
    with pytest.raises(SpecError, match=r"data.tokenizer = '/no/such' cannot be read: No such file"):
        found.tokenizer_agreed("/no/such")
