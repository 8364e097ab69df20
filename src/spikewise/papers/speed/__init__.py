"""The speed benchmark: a scene, the seconds of each stage, the limits of the machine."""
