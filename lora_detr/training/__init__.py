"""The trainer and what only it needs: optimiser, checkpoints, seeds, distribution, metrics."""
