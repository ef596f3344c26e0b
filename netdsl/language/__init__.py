"""The front end: from source text to a checked program and its graph."""
