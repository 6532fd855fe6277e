"""Pictures: found, decoded and made into what a model's tower takes."""
