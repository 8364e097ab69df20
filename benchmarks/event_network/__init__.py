"""A network that judges and embeds events: the other way of finding units, beside the bank of shapes."""
