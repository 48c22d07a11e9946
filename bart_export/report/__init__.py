"""REPORT.md and its pictures."""
