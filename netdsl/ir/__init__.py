"""Graphs of operators: building, verifying, differentiating, printing, evaluating."""
