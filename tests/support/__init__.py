"""Models, servers and artifacts shared by tests."""
