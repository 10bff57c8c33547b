"""One file per runtime; each turns prepared batches into scores, maps and scale weights."""
