"""The Triton kernels behind `dsabench.ops`."""
