"""What leaves the program: stripped detectors, the proof that they predict the same, and converted checkpoints."""
