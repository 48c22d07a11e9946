"""Coral's Edge TPU: what its compiler accepts, and what an export for it consists of."""
