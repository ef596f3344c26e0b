"""Ranks: the processes of one run, and how they exchange values."""
