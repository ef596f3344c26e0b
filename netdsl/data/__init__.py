"""Data: where samples come from, how they are augmented, and the order in which they are used."""
