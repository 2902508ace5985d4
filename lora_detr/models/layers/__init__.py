"""Blocks that transformer layers are made of."""
