"""Seeing what a net is and whether it is right: summary, expectations, gradient checks."""
