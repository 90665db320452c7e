"""Tables of trained architectures, and statistics of scores against them. Import the modules; nothing is loaded here."""
