"""Embeds text with a pretrained biLM: `python embed.py --model DIR --input FILE --output FILE.hdf5`."""

import itertools
import sys
from pathlib import Path

import tyro
from tqdm import tqdm

import elmo_jax
from elmo_jax.config import Precision
from elmo_jax.corpus import read_input
from elmo_jax.embedding import Layers, StateMode, write_hdf5
from elmo_jax.errors import InputError, exit_on_bad_input


def embed(
    model: Path,
    input: str,
    output: Path,
    layers: Layers = "average",
    state: StateMode = "warm",
    precision: Precision = "float32",
    boundaries: bool = False,
    batch_size: int | None = None,
    mix_weights: tuple[float, ...] = (),
    mix_gamma: float = 1.0,
) -> None:
    """Writes the vectors of every line of a text in the HDF5 format of bilm-tf and AllenNLP.

    Dataset "i" holds line i (from 0): [tokens, 2P], or [L + 1, tokens, 2P] with --layers all. A blank line has no
    tokens, [0, 2P]. The tokens <S> and </S> in a line are read as the boundary marks that they name.

    Args:
        model: Model folder (options.json, weights.hdf5, perhaps vocab.txt) or training workdir.
        input: Text file, UTF-8, plain or .gz: a sentence a line, tokens separated by spaces; "-" reads standard input.
        output: HDF5 file to write; it appears only when it is whole.
        layers: Average of all layers, the top layer, all layers, or their mix by --mix_weights.
        state: LSTM state at the beginning of a sentence: a fixed warm state, zero, or carried on from the sentence
            before in the same row (bilm-tf's stateful behaviour).
        precision: Inputs of the matrix products, which are summed in float32.
        boundaries: Keep the vectors of the boundaries <S> and </S>.
        batch_size: Rows of sentences read at a time; by default chosen by the length of the text.
        mix_weights: With --layers mix: a number for each layer, word vectors first; a softmax makes them sum to 1.
        mix_gamma: With --layers mix: factor of the sum.
    """
    if output.exists() and Path(input).exists() and output.samefile(input):
        raise InputError(f"--output and --input are the same file, {input}; give another file to write")
    elmo = elmo_jax.load(model)
    mix = elmo_jax.Mix(mix_weights, mix_gamma) if mix_weights else None
    read, written = itertools.tee(read_input(input))
    vectors = elmo.embed_iter(
        read, layers=layers, state=state, precision=precision, boundaries=boundaries, batch_size=batch_size, mix=mix
    )
    write_hdf5(output, written, tqdm(vectors, "embedding", unit=" sentences"))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(embed, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
