"""Triton kernels that write the index lists of selections without an indexer."""
