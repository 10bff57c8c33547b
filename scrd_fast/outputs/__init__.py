"""Results in the files that other programs read."""
