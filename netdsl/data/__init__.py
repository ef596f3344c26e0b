"""Data: where samples come from, how they are changed, and in which order they are learnt."""
