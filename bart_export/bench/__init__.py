"""How quick and how large files are, on the machine at hand."""
