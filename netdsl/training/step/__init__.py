"""The training step, the evaluation and the watched values, as graphs."""
