"""Environments, and the adapter between their spaces and the agent's."""
