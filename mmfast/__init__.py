"""mmfast: preference alignment for vision-language models. Importing it imports nothing else."""
