"""What goes out: reports."""
