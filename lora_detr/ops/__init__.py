"""Tensor functions without parameters: boxes, positions, deformable sampling."""
