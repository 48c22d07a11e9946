"""REPORT.md and its pictures, from a manifest's fields."""
