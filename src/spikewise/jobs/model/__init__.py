"""From prepared groups to a model: the motion of the tissue, the start, the learning."""
