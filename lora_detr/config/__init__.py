"""Configuration: the strict base, reading and merging of YAML, presets, and the origin of each value."""
