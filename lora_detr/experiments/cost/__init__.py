"""What systems cost: time, memory and parameters of a step (Table 6)."""
