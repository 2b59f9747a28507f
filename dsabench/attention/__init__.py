"""Attention variants: the contract, the registry, and one file a variant."""
