"""Which units a spike belongs to: where several units answer, the traces decide."""
