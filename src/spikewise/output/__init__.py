"""A result on disk, what is measured on it, and its comparison with the truth."""
