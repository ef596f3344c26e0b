"""Training: the recipe (recipe), the step as IR (step), the run (run) and its files (store)."""
