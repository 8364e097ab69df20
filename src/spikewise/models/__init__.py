"""The networks, their pretrained filters and their files: what is learnt, and nothing of how."""
