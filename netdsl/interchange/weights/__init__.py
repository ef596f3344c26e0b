"""Weights of other programs for nets, and those of nets for PyTorch."""
