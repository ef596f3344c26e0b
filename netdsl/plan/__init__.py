"""Graph to plan: kernels as sets of nodes, their order, and where every value lies in memory."""
