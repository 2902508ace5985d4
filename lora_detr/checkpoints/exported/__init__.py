"""Exported files: what they state about themselves, and running them where no detector can be built."""
