"""Models: loading, one adapter a family, the Scorer, LoRA and parallelism."""
