"""Charts that compare nets: accuracy against cost, and the compute of training."""
