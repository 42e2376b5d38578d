"""The configuration as dataclasses, its files and Hydra; the only folder that knows Hydra."""
