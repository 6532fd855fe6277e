"""The algorithm of the log-probs: tiles of the vocabulary, and the folds of each backend."""
