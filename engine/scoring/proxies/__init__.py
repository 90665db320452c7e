"""Scores of untrained networks from single passes. Import the modules; nothing is loaded here.

:mod:`~engine.scoring.proxies.catalogue` lists them, :func:`~engine.scoring.proxies.scores.scores` takes many at once.
"""
