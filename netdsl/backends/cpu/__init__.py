"""The CPU engine: kernels of machine code, launched in tasks over the cores of this machine."""
