"""The config.json of a model that others trained with `transformers`, read as the model fields of a spec.

Llama, Qwen2 and Qwen3. What changes the function and has no field here is refused by its name; so is a field that is
not known, unless it is off. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from dsabench.errors import CheckpointError, SpecError
from dsabench.spec.foreign_rope import brief, rope_fields
from dsabench.spec.model_settings import ModelSpec
from dsabench.user_folders import expanded

CONFIG = "config.json"


class Architecture(NamedTuple):
    """A class of `transformers`, and what its config.json means where it is silent."""

    model_type: str
    qkv_bias: bool
    qk_norm: bool
    kv_heads: int | None
    """num_key_value_heads; None is as many as query heads."""

    head_dim: int | None
    """None is hidden_size / num_attention_heads."""


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", qkv_bias=False, qk_norm=False, kv_heads=None, head_dim=None),
    "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, qk_norm=False, kv_heads=32, head_dim=None),
    "Qwen3ForCausalLM": Architecture("qwen3", qkv_bias=False, qk_norm=True, kv_heads=32, head_dim=128),
}

SOURCES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "tied_head": "tie_word_embeddings",
    "rope_base": "rope_theta",
    "rope_scaling": "the llama3 scaling of rope_parameters",
}
"""Field of ModelSpec -> the field of config.json that it is read from. The others follow from the architecture."""

_NEEDED = ("d_model", "n_layers", "n_heads", "d_ff", "vocab_size")

_WITHOUT_EFFECT = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"),
    *("initializer_range", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("pretraining_tp", "max_window_layers", "layer_types", "id2label", "label2id", "return_dict", "torchscript"),
    *("tokenizer_class", "is_decoder", "chunk_size_feed_forward", "problem_type", "task_specific_params"),
    *("unsloth_version", "unsloth_fixed", "is_llama_config", "attn_implementation", "_attn_implementation"),
    *("_attn_implementation_autoset", "transformers.js_config", "dsabench"),
}
"""Fields that change nothing in what the model computes from tokens; of layer_types what matters is looked at."""

_REFUSED = {
    "attention_bias": "a bias on the output projection, too, which no attention here has",
    "mlp_bias": "biases in the feed-forward, which no expert here has",
    "attention_dropout": "dropout on attention probabilities, which no attention here has",
    "use_sliding_window": "a sliding window in some layers; here all layers have one attention",
    "quantization_config": "quantised weights; only plain F32, BF16 and F16 are read",
    "auto_map": "code of its own, which is not executed",
}
"""Fields that are refused where they are on, with what they mean."""


@dataclass(frozen=True)
class ForeignConfig:
    """What a folder's config.json says of its model."""

    folder: Path
    architecture: str
    """Its class in `transformers`."""

    fields: Mapping[str, Any]
    """Model fields of a spec by name, those at their defaults left out; ModelSpec(**fields) is the model."""

    longest: int | None
    """max_position_embeddings: the longest window that it was made for."""

    @property
    def model(self) -> ModelSpec:
        """The model's settings."""
        return ModelSpec.model_validate(dict(self.fields))

    @property
    def tokenizer(self) -> Path | None:
        """Its tokenizer.json; None where the folder has none."""
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    def agreed(self, given: Mapping[str, Any], where: Callable[[str], str] = lambda path: "") -> dict[str, Any]:
        """`given` model fields of a spec, the model's own filled in. Raises SpecError where one that is given says
        something else than the model; `where(path)` is what set it, put before the problem. What a model does not
        decide (dropout) is free; an unknown field is left for the spec's validation to refuse."""
        ours = self.model
        problems = []
        for name, value in given.items():
            if name in DECIDED and not _same(ours, name, value):
                problems.append(
                    f"{where(f'model.{name}')}model.{name} = {json.dumps(value)} contradicts {self.origin(name)} of "
                    f"{self.folder}, where it is {json.dumps(_shown(ours, name))}; leave model.{name} out, or start "
                    "from another model"
                )
        if problems:
            raise SpecError("\n".join(problems))
        return {**{name: value for name, value in given.items() if name not in DECIDED}, **self.fields}

    def tokenizer_agreed(self, given: str | None) -> str:
        """data.tokenizer of a run of this model: its own file, unless a file of the same content is given. Raises
        SpecError where another one is given, CheckpointError where there is none."""
        own = self.tokenizer
        if own is None and given in (None, "bpe", "bytes"):
            raise CheckpointError(f"{self.folder} holds no tokenizer.json; give one of its tokenizer in data.tokenizer")
        if own is None or given is None:
            return str(given or own)
        if given in ("bpe", "bytes") or _content(Path(given)) != _content(own):
            raise SpecError(f"data.tokenizer = {given!r} contradicts {own}; leave data.tokenizer out")
        return given

    def origin(self, name: str) -> str:
        """Where a model field is read from, in words."""
        return SOURCES.get(name, f"the architecture {self.architecture}")


_OF_ALL: dict[str, Any] = {"n_experts": 1, "experts_per_token": 1, "embedding_std": 1.0}
"""Fields that are alike in all these architectures: one expert, and an embedding that is not multiplied."""

DECIDED = {*SOURCES, *_OF_ALL, "qkv_bias", "qk_norm", "attention_layout", "latent"}
"""The fields of ModelSpec that such a model decides."""


def read_config(folder: Path) -> ForeignConfig:
    """The config.json of a folder. Raises CheckpointError that names the file, the field and its value where the model
    is one that dsabench does not compute."""
    path = folder / CONFIG
    values = _mapping(path)
    name = _architecture(path, values)
    architecture = ARCHITECTURES[name]
    _refuse_what_is_unknown(path, values, architecture)
    read = {field: values[SOURCES[field]] for field in SOURCES if values.get(SOURCES[field]) is not None}
    if missing := [SOURCES[field] for field in _NEEDED if field not in read]:
        raise CheckpointError(f"{path} does not say {', '.join(missing)}")
    read.setdefault("tied_head", False)
    read |= rope_fields(path, values) | _OF_ALL | {"qkv_bias": architecture.qkv_bias, "qk_norm": architecture.qk_norm}
    for field, key, silent in (
        ("n_kv_heads", "num_key_value_heads", architecture.kv_heads),
        ("head_width", "head_dim", architecture.head_dim),
    ):
        if key not in values and silent is not None:
            read[field] = silent
    model = _validated(path, read)
    for field in ("d_ff", "vocab_size"):
        if read[field] >= 2**31:
            raise CheckpointError(f"{path}: {SOURCES[field]} = {read[field]} is more than any model has")
    if model.kv_heads == model.n_heads:
        read["n_kv_heads"] = None
    if model.d_model % model.n_heads == 0 and model.head_dim == model.d_model // model.n_heads:
        read["head_width"] = None
    model, default = _validated(path, read), ModelSpec()
    fields = {field: getattr(model, field) for field in read if getattr(model, field) != getattr(default, field)}
    if model.rope_scaling is not None:
        fields["rope_scaling"] = model.rope_scaling.model_dump()
    longest = values.get("max_position_embeddings")
    return ForeignConfig(folder, name, fields, longest if isinstance(longest, int) else None)


def _content(path: Path) -> bytes:
    try:
        return expanded(path, SpecError).read_bytes()
    except OSError as error:
        raise SpecError(f"data.tokenizer = {str(path)!r} cannot be read: {error.strerror or error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no mapping")
    return values


def _architecture(path: Path, values: Mapping[str, Any]) -> str:
    accepted = f"accepted: {', '.join(ARCHITECTURES)}"
    named, kind = values.get("architectures"), values.get("model_type")
    if named is None and kind is not None:
        named = [name for name, known in ARCHITECTURES.items() if known.model_type == kind]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in list(ARCHITECTURES):
        shown = json.dumps(values.get("architectures")), json.dumps(kind)
        raise CheckpointError(
            f"{path}: architectures = {shown[0]} (model_type = {shown[1]}) cannot be read; {accepted}"
        )
    if kind is not None and kind != ARCHITECTURES[named[0]].model_type:
        raise CheckpointError(f"{path}: architectures = {named[0]} and model_type = {json.dumps(kind)} contradict")
    return str(named[0])


def _refuse_what_is_unknown(path: Path, values: Mapping[str, Any], architecture: Architecture) -> None:
    known = {*SOURCES.values(), *_WITHOUT_EFFECT, "rope_scaling", "rope_parameters", "hidden_act"}
    if architecture.model_type != "llama":
        known.add("sliding_window")  # has an effect only with use_sliding_window
    for name, value in values.items():
        on = value is not None and value is not False and value not in (0, "", [], {})
        if name in _REFUSED and on:
            raise CheckpointError(f"{path}: {name} = {brief(value)} cannot be read: it means {_REFUSED[name]}")
        if name not in known and name not in _REFUSED and on:
            raise CheckpointError(
                f"{path}: {name} = {brief(value)} is not known, so what it changes is not known either; if it changes "
                "nothing, take it out of a copy of config.json"
            )
    if (act := values.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise CheckpointError(f"{path}: hidden_act = {brief(act)} cannot be read; accepted: silu (SwiGLU)")
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list):
        raise CheckpointError(f"{path}: layer_types = {brief(kinds)} is no list")
    if other := [kind for kind in kinds if kind != "full_attention"]:
        raise CheckpointError(
            f"{path}: layer_types names {brief(other[0])}; accepted: full_attention in every layer, because here all "
            "layers have one attention"
        )


def _validated(path: Path, fields: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"{SOURCES.get(name, name)} = {brief(first['input'])}: " if name else ""
        raise CheckpointError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}") from None


def _same(ours: ModelSpec, name: str, value: Any) -> bool:
    """Whether `value` of a model field is what the model has, null read as what it stands for."""
    try:
        theirs = ModelSpec.model_validate({**ours.model_dump(), name: value})
    except ValidationError:
        return False
    return bool(_shown(theirs, name) == _shown(ours, name))


def _shown(model: ModelSpec, name: str) -> Any:
    resolved = {"n_kv_heads": model.kv_heads, "head_width": model.head_dim}
    return resolved.get(name, model.model_dump()[name])
