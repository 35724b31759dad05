"""CUDA kernels, compiled from the sources beside this file through cupy's RawModule where a card and cupy are there."""
