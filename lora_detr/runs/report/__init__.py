"""One HTML page about a run: what its detector does on the validation split, and how it was trained."""
