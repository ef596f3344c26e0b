"""A graph of layer calls as a readable net."""
