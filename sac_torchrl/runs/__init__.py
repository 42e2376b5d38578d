"""A run: its folder, checkpoints, evaluations, metrics and plots."""
