"""Units from the recording alone: other sorters that make the first labels, and cleaning of labels."""
