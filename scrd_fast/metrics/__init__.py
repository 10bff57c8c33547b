"""Figures of scores alone: ranking, agreement with a reference, decisions."""
