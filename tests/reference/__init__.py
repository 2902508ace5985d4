"""Slow, plain re-statements of the method: loops and scalars, so that they can be read beside the equations."""
