"""What a run keeps on disk, and how a run is resumed from it."""
