"""One file per runtime; each compiles the network that the native scorer drives."""
