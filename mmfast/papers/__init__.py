"""The four papers in miniature."""
