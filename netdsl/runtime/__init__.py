"""Execution of graphs: states, and executors that bind once and run many times."""
