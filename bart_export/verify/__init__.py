"""Proof: verification, golden vectors, benchmarks."""
