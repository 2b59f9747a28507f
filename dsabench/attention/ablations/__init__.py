"""Selections without an indexer: the same model, schedule and k as DSA with another answer to "which k"."""
