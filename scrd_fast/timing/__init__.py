"""Figures of an engine, and the limits of the machine that they are held against."""
