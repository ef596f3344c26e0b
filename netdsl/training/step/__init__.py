"""The training step, the evaluation and what is watched, as graphs."""
