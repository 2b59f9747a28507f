"""Settings of the attentions: the base of every variant's, and those of all built-in ones. Loads no torch.

Each class is the spec of the variant named by its `kind`; the module that computes it names the class as its
`spec_class`. A variant has a file here and its class a line in `BUILT_IN`.
"""

from __future__ import annotations

from dsabench.spec.attention.ablation_settings import AblationSpec
from dsabench.spec.attention.attention_spec import AttentionSpec, warmup_steps
from dsabench.spec.attention.compressed_settings import CompressedSpec
from dsabench.spec.attention.csa_settings import CSASpec
from dsabench.spec.attention.dense_settings import DenseSpec
from dsabench.spec.attention.dsa_settings import DSASpec
from dsabench.spec.attention.hca_settings import HCASpec
from dsabench.spec.attention.hybrid_settings import HybridSpec
from dsabench.spec.attention.indexer_settings import IndexerSpec
from dsabench.spec.attention.moba_settings import MoBASpec
from dsabench.spec.attention.msa_settings import IndexBranchSpec, MSASpec
from dsabench.spec.attention.nsa_settings import NSASpec
from dsabench.spec.attention.oracle_settings import OracleSpec
from dsabench.spec.attention.pooled_dsa_settings import PooledDSASpec
from dsabench.spec.attention.random_settings import RandomSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec, SelectingSpec, keys_kept
from dsabench.spec.attention.settings_by_name import kind_of, settings_class
from dsabench.spec.attention.sink_window_settings import SinkWindowSpec
from dsabench.spec.attention.sliding_window_settings import SlidingWindowSpec
from dsabench.spec.attention.strided_settings import StridedSpec

__all__ = [
    "BUILT_IN",
    "BY_EVERY_NAME",
    "FORMER_NAMES",
    "AblationSpec",
    "AttentionSpec",
    "CSASpec",
    "CompressedSpec",
    "DSASpec",
    "DenseSpec",
    "HCASpec",
    "HybridSpec",
    "IndexBranchSpec",
    "IndexerSpec",
    "MSASpec",
    "MoBASpec",
    "NSASpec",
    "OracleSpec",
    "PooledDSASpec",
    "RandomSpec",
    "ScheduledSpec",
    "SelectingSpec",
    "SinkWindowSpec",
    "SlidingWindowSpec",
    "StridedSpec",
    "keys_kept",
    "kind_of",
    "settings_class",
    "warmup_steps",
]

BUILT_IN: dict[str, type[AttentionSpec]] = {
    spec.model_fields["kind"].default: spec
    for spec in (
        DenseSpec,
        DSASpec,
        PooledDSASpec,
        NSASpec,
        SlidingWindowSpec,
        SinkWindowSpec,
        StridedSpec,
        RandomSpec,
        OracleSpec,
        MoBASpec,
        CSASpec,
        HCASpec,
        MSASpec,
        HybridSpec,
    )
}
"""The settings class of every built-in variant by its name, in the order in which they are listed."""

FORMER_NAMES = {"block": "moba"}
"""Built-in variants by the names that they had. A spec may still say the former name, and keeps it: it is the same
computation, and a run's id is that of the name in its spec, so that runs of older versions stay what they are."""

BY_EVERY_NAME = {**BUILT_IN, **{former: BUILT_IN[name] for former, name in FORMER_NAMES.items()}}
"""BUILT_IN, and the same classes by their former names."""
