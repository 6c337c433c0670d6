"""Run the command line as `python -m madtp_cli`."""

from __future__ import annotations

from madtp_cli.cli import main

if __name__ == "__main__":
    main()
