"""Pictures of numbers: what runs have measured, and the style and files of all such figures."""
