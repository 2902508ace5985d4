"""Losses: classification, boxes, and the criterion that matches, weighs and sums."""
