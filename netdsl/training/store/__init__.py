"""The files that a run writes, and how a run is resumed from them."""
