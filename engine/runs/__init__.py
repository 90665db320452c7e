"""Everything a run is made of, and nothing about any method: configuration, directory, checkpoints, streams."""
