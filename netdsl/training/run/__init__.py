"""The run: the training loop, its steps, evaluation, memory and faults."""
