"""Graph-to-graph transformations: small pure passes, one file each, and the pipeline that orders
them."""
