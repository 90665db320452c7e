"""CUDA C++ sources, loaded by :mod:`engine.kernels`."""
