"""How good answers are: the scores of the embedded world, and which words became more or less frequent."""
