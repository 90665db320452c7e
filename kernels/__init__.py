"""Operators with fast and plain formulations, imported as ``engine.kernels``. They know nothing of the rest of the engine."""
