"""What everything stands on: errors, settings, seeds, progress, threads, devices, compiling, files."""
