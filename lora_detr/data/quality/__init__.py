"""What makes a data set teach or measure less than it could, though nothing in it stops a run."""
