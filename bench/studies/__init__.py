"""Studies: questions that a table of measurements answers, each a module with a command of its own."""
