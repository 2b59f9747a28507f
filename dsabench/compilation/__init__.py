"""Kernels compiled ahead: which ones planned runs will launch, and processes that compile them meanwhile."""
