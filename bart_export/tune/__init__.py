"""Layer sensitivities, and the search for the smallest file within a quality budget."""
