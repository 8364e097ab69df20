"""Units from the recording alone: other sorters make the first labels, which are then cleaned."""
