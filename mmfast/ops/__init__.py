"""The fused ops. This package imports nothing of mmfast but its own backends."""
