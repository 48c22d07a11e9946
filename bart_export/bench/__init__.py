"""Benchmarks of an artifact on this machine: sizes, openings, memory, speed, serving."""
