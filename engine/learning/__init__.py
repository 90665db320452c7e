"""How a network learns a task, and how meta-parameters learn from tasks: inner loops, meta-gradients, outer updates."""
