"""netdsl: a graph-compiled language for convolutional networks."""

__version__ = "0.1.0"
