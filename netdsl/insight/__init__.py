"""Inspecting and checking nets: summary, expectations, gradient checks."""
