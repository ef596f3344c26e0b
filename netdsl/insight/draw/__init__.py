"""The graph of a net as a picture: its blocks as nested groups, laid out and written as SVG."""
