"""The documentation; `docs.tools` writes and checks its generated pages."""
