"""The report of a result: one HTML file that needs no other file."""
