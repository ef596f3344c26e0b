"""The CUDA engine: generated kernels, cuDNN and cuBLASLt, captured as one CUDA graph."""
