"""`python -m frontd` and the `frontd` command."""

from __future__ import annotations

from frontd.cli.root import cli


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of `frontd.cli.common`."""
    cli(prog_name="frontd")


if __name__ == "__main__":
    main()
