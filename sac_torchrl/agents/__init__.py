"""Networks, policies, critics, losses, and one file for each variant."""
