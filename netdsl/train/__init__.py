"""Training: the step as IR, the loop, what it measures and what it keeps."""
