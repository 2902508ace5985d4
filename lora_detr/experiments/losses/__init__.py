"""Losses and branch diversity of several runs, side by side."""
