"""What the training loop is made of, and what is made of a finished run."""
