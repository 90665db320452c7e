"""Benchmarks side by side with plain formulations: ``python -m bench list | run NAME... | plot FILE``."""
