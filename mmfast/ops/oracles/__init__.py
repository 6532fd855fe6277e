"""What the ops mean: a few lines of plain torch each, which work in fp64."""
