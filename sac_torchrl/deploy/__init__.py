"""Trained policies outside of training: saved, loaded, exported and played."""
