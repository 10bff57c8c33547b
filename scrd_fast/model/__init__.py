"""The network, its checkpoints, and the import of published weights."""
