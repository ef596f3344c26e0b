"""Graph to graph: small pure passes, one file each, and the pipeline that lists them in order."""
