"""Processes of a run: launching, the world of ranks, stopping, and faults."""
