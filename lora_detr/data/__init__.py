"""Data sets: reading and checking annotations, images, augmentation, batches, and a generated set."""
