"""Entry of the command ``sifproof``.

Imports nothing before it can put into words what goes wrong: see :mod:`sifproof.exit_codes`.
"""

import sys


def main() -> int:
    """Run the command; returns its exit code."""
    from sifproof.exit_codes import guarded  # noqa: PLC0415 - what the machine's Python can't load is told too

    def command() -> int:
        from sifproof import cli  # noqa: PLC0415

        return cli.command()

    return guarded(command)


if __name__ == "__main__":
    sys.exit(main())
