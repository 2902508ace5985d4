"""Generated data sets: shapes, scenes and whole sets."""
