"""The commands of the papers' experiments and of the speed benchmark."""
