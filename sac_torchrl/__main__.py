"""`python -m sac_torchrl` is the command `sac-torchrl`."""

from sac_torchrl.cli.main import main

if __name__ == "__main__":
    main()
