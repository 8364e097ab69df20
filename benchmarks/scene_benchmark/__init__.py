"""What benchmarks/scenes.py is made of: kinds of scenes, scenes, sorters, scores, runs and outputs."""
