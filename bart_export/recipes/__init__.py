"""How a file's matrices are stored: the table, files of recipes, and the metrics' names."""
