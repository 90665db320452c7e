"""Search methods, one file a system. Nothing is loaded here: :mod:`engine.methods.registry` knows them by name."""
