"""Faults in large numbers: each part repeats one promise of the package under hundreds of random injuries."""
