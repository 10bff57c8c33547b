"""Engines: the portable graph, the .scrd file, the fidelity check, building, loading, scoring."""
