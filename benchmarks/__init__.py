"""Benchmarks: equality is checked before anything is timed."""
