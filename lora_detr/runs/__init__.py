"""A run from request to last evaluation."""
