"""Programs that write and check pages of the documentation."""
