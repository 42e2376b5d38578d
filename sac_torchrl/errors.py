"""The failures a user can meet, each one line on standard error and an exit code."""


class SacError(Exception):
    """A failure whose message is one line: what was wrong, where, and what to do."""

    exit_code = 70


class ConfigError(SacError):
    """A configuration or an environment that cannot be trained on, found before any file is made."""

    exit_code = 64


class CheckpointError(SacError):
    """A checkpoint that is damaged or belongs to another configuration."""

    exit_code = 65


class RunFolderInUse(SacError):
    """Another process holds the run folder."""

    exit_code = 73


class DiskError(SacError):
    """A file that cannot be written: no space, no permission, no such folder."""

    exit_code = 74
