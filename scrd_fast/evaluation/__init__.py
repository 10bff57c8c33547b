"""What scores mean: calibrated decisions, and whether new images are still like the old ones."""
