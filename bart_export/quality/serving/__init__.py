"""How an artifact is served: what serving adds, and how much a server answers."""
