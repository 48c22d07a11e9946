"""Coral's Edge TPU: its compiler's rules, and the files of an export for it."""
