"""What a run writes and reads back: its directory, metrics, logs, plots and evaluation results."""
