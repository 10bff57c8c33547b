"""How well anomalies are found: methods on data sets, seed by seed; `python -m
benchmarks.detection`."""
