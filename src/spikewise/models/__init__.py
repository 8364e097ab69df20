"""What is learnt: networks, their training, their checkpoints."""
