"""One file a family of layouts on disk; each function returns the set it finds in a folder, or None."""
