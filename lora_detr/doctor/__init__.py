"""What is checked before or after a run: machine and data, models, ranks, self-test, and replay of a failed step."""
