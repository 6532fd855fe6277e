"""Triton kernels, one file an op; installed as mmfast.kernels."""
