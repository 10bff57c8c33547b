"""From a checkpoint to an engine file: candidates, the search for layers, the fidelity limits."""
