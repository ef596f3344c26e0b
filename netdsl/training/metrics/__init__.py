"""The metrics of a set of images: counts of predictions, areas under curves, and their table."""
