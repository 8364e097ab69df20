"""A result in the hands of a user: its table of units, its report, its exports."""
