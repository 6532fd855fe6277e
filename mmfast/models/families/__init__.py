"""One file a model family; listed.py chooses."""
