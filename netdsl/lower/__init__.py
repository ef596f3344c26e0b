"""What kernels compute, as expressions of one element; engines render and launch them."""
