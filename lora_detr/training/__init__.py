"""The training loop alone: trainer, step, optimiser, plan, weight averaging, seeding and the run log."""
