"""How a file's matrices are stored: the table of recipes, recipe files, and metrics."""
