"""The pipeline from a checkpoint to an artifact, and what each target adds to it."""
