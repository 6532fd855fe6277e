"""All four papers in miniature on the embedded world: `mmfast demo --papers` (docs/papers-world.md)."""
