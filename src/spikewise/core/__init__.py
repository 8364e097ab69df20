"""The base of all rooms: errors, settings, constants, seeds, progress, threads, devices, compiling, files."""
