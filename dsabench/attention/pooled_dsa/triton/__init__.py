"""Triton kernel of the pools: lists of the tokens of the selected ones."""
