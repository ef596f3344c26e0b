"""Graph to plan: kernels as sets of nodes, their order, and the memory location of every value."""
