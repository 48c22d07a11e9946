"""Directories that hold a BART, read into names and arrays."""
