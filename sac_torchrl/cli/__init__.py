"""The `sac-torchrl` command."""
