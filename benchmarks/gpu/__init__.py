"""The quantities of the main benchmark on a GPU: CUDA events and the allocator's peak."""
