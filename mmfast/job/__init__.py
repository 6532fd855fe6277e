"""What a run opens once from its config: processes, folder, data and model."""
