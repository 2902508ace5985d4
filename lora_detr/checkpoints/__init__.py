"""Model files: writing, verifying and opening them, and what a run starts from."""
