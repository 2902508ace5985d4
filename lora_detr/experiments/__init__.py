"""Experiments over many runs: the paper's tables, what they cost, and the losses of runs beside each other."""
