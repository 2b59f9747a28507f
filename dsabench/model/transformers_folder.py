"""A dense model as a folder of `transformers`: Llama, Qwen2 or Qwen3 for one expert, Mixtral for several.

AutoModelForCausalLM computes the same logits from it. An embedding that dsabench multiplies on its way in is written
multiplied, and the output layer, which it is then no longer, as a matrix of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dsabench._version import __version__
from dsabench.errors import CheckpointError
from dsabench.model.parameter_names import as_theirs, their_names
from dsabench.model.transformer import Transformer
from dsabench.spec.foreign_config import ARCHITECTURES
from dsabench.spec.model_settings import ModelSpec
from dsabench.spec.run import RunSpec

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""All that a folder holds; of a task's model, whose tokens are no text, without a tokenizer."""


def architecture_of(spec: RunSpec) -> str:
    """The class of `transformers` that computes the model of `spec`. Raises CheckpointError with the reason where none
    does."""
    kind, model = spec.attention.kind, spec.model
    if kind == "hybrid":
        raise CheckpointError(
            f"attention hybrid: no class in transformers has layers of {' and '.join(spec.attention.kinds)}; a run of "
            "dense attention can be written"
        )
    if kind != "dense":
        why = f"attention {kind} has no class in transformers"
        if kind == "dsa":
            why += ": its DeepSeek-V3.2 selects inside multi-head latent attention, with another mixture of experts"
        raise CheckpointError(f"{why}; a run of dense attention can be written")
    if model.attention_layout == "latent":
        raise CheckpointError(
            "model.attention_layout = latent: the DeepSeek-V3 of transformers has this attention, but routes its "
            "experts in another way (by sigmoids, with one that is shared); a run of attention_layout = heads can be "
            "written"
        )
    if model.short_convolution is not None:
        raise CheckpointError(
            f"model.short_convolution = {model.short_convolution}: no class in transformers has a convolution before "
            "its attention; a run without one can be written"
        )
    if model.d_model % model.n_heads:
        raise CheckpointError(
            f"model.n_heads = {model.n_heads} does not divide model.d_model = {model.d_model}, which transformers asks "
            "for even where the width of a head is set"
        )
    if model.qkv_bias and model.qk_norm:
        raise CheckpointError("no class that is written here has both model.qkv_bias and model.qk_norm")
    if model.n_experts == 1:
        return next(
            name
            for name, known in ARCHITECTURES.items()
            if (known.qkv_bias, known.qk_norm) == (model.qkv_bias, model.qk_norm)
        )
    for name, value in (("qkv_bias", model.qkv_bias), ("qk_norm", model.qk_norm)):
        if value:
            raise CheckpointError(f"model.{name} = true with {model.n_experts} experts: Mixtral has no such attention")
    if model.experts_per_token == 1:
        raise CheckpointError(
            f"model.experts_per_token = 1 of {model.n_experts} experts: here an expert is then weighted by its "
            "probability (as in Switch Transformer), by Mixtral with 1, which is another model"
        )
    return "MixtralForCausalLM"


def write_folder(
    model: Transformer, folder: Path, end_of_document: int | None, end: str | None, about: dict[str, str]
) -> str:
    """Write config.json, generation_config.json and model.safetensors, fp32, into a folder that exists, and, where
    `end`, the text of the token that ends a document, is given, the tokenizer_config.json. Returns the class.

    about: put into config.json as `dsabench`, which changes nothing. Raises CheckpointError as `architecture_of`.
    """
    architecture = architecture_of(model.spec)
    config = {**_config(model, architecture, end_of_document), "dsabench": {"version": __version__, **about}}
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {**ids, "do_sample": False})
    if end is not None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        _write(
            folder / "tokenizer_config.json",
            {**settings, "eos_token": end, "pad_token": end, "model_max_length": model.spec.length},
        )
    save_file(_tensors(model), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # the library makes it private
    return architecture


def _config(model: Transformer, architecture: str, end: int | None) -> dict[str, Any]:
    settings = model.spec.model
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture].model_type if architecture in ARCHITECTURES else "mixtral",
        "hidden_act": "silu",
        "hidden_size": settings.d_model,
        "intermediate_size": settings.d_ff,
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": settings.n_heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": settings.norm_eps,
        "tie_word_embeddings": not _own_head(settings),
        "max_position_embeddings": model.spec.length,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "dtype": "float32",
        **_rope(settings),
    }
    if architecture == "MixtralForCausalLM":
        config |= {
            "num_local_experts": settings.n_experts,
            "num_experts_per_tok": settings.experts_per_token,
            # Mixtral's balance loss counts each of a token's routes as a whole one. It is off unless asked for.
            "router_aux_loss_coef": settings.balance_loss_weight / settings.experts_per_token,
            "output_router_logits": False,
            "sliding_window": None,
        }
    return config


def _rope(settings: ModelSpec) -> dict[str, Any]:
    """As transformers 5 reads it, and as version 4 does."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    if settings.rope_scaling is not None:
        scaling = settings.rope_scaling.model_dump()
        parameters = {
            "rope_type": "llama3",
            "original_max_position_embeddings": scaling.pop("original_length"),
            **scaling,
        }
    old = None if settings.rope_scaling is None else parameters
    theta = settings.rope_base
    return {"rope_theta": theta, "rope_scaling": old, "rope_parameters": {"rope_theta": theta, **parameters}}


def _own_head(settings: ModelSpec) -> bool:
    return not settings.tied_head or settings.embedding_scale != 1


def _tensors(model: Transformer) -> dict[str, Tensor]:
    settings = model.spec.model
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        names = their_names(name, settings.n_experts)
        found |= dict(zip(names, as_theirs(name, parameter.detach()), strict=False))  # no name: a router of one expert
    if _own_head(settings):
        found["lm_head.weight"] = model.head_VD.detach().clone()
        found["model.embed_tokens.weight"] = found["model.embed_tokens.weight"] * settings.embedding_scale
    return {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
