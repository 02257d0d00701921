"""Embeds text, as `elmo-jax embed` does: `python embed.py --model DIR --input FILE --output FILE.hdf5`."""

import sys

from elmo_jax import commands


def main(argv: list[str]) -> None:
    commands.main(["embed", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
