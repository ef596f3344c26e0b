"""Reports: one self-contained page on one or several runs."""
