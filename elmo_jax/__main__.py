"""`elmo-jax`, and `python -m elmo_jax`."""

import sys

from elmo_jax import commands


def main(argv: list[str] | None = None) -> None:
    """Runs a command line, by default that of this process."""
    commands.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
