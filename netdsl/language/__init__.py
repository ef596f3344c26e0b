"""From text to a checked program and its graph."""
