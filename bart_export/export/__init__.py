"""The export pipeline, from a checkpoint to a verified artifact, and its targets."""
