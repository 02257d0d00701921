"""Pretrains a biLM, as `elmo-jax train` does: `python train.py CONFIG --workdir DIR [--section.field VALUE ...]`."""

import sys

from elmo_jax import commands


def main(argv: list[str]) -> None:
    commands.main(["train", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
