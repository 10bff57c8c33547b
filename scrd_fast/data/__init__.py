"""Images: reading them from files, and the demo set."""
