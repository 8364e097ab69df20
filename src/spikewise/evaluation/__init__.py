"""How good a sorting is."""
