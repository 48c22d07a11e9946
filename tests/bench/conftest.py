"""What the tests of both benchmarks of files leave out."""

import pytest

from bart_export.bench import opening_cost
from bart_export.bench.rows import MemoryRow


@pytest.fixture
def no_openings(monkeypatch):
    """Skip openings and memory, which need separate processes."""
    monkeypatch.setattr(opening_cost, "measure", lambda *arguments: [])
    row = MemoryRow("float32", "dynamic", *[1] * 4, None, None)
    monkeypatch.setattr(opening_cost, "memory", lambda *arguments: row)
