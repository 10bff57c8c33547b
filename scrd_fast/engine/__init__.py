"""Engines: the .scrd file, loading, scoring, and the golden images that both are held to."""
