"""Training: what is wanted (recipe), the step as IR (step), the run (run), its files (store)."""
