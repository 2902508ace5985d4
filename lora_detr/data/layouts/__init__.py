"""Layouts of data sets, one in each file. Each turns what lies on disk into the rows of a COCO file."""
