"""What the model cannot do without: multiplications and additions (a product [M, K] · [K, N] takes 2MKN), bytes."""

import re
from collections import Counter
from collections.abc import Iterable
from math import prod

from elmo_jax.config import ModelConfig
from elmo_jax.model import parameter_shapes
from elmo_jax.streams import Batch
from elmo_jax.vocabulary import PADDING

# In the names of what a training step hardly ever carries out: what `softmax_table.Exchange.further` does.
HARDLY_EVER = "further_rounds"


def of_lstms(model: ModelConfig) -> int:
    """The products of all LSTM layers of both directions at one position."""
    projection = model.projection_dim * model.cell_dim if model.projection_dim != model.cell_dim else 0
    return 2 * model.layers * 2 * (2 * model.projection_dim * 4 * model.cell_dim + projection)


def of_word(model: ModelConfig, characters: int) -> int:
    """The products of the char CNN for a word of so many characters (begin and end of word included).

    As many positions are counted as the widest filter needs to see padding and nothing else once: more change nothing.
    """
    columns = min(characters + model.widest_filter, model.max_characters)
    convolutions = sum(
        (columns - width + 1) * width * model.character_dim * filters for width, filters in model.filters
    )
    highways = model.highway_layers * 2 * model.filter_dim**2
    projection = model.filter_dim * model.projection_dim if model.filter_dim != model.projection_dim else 0
    return 2 * (convolutions + highways + projection)


def parameters(model: ModelConfig) -> int:
    """Numbers that a model with characters has, without the softmax."""
    return sum(prod(shape) for shapes in parameter_shapes(model).values() for shape in shapes.values())


def of_text(model: ModelConfig, sentences: Iterable[list[str]]) -> int:
    """What embedding a text takes: the LSTMs at each token, the char CNN for each distinct word."""
    sentences = list(sentences)
    words = {word for sentence in sentences for word in sentence}
    spelled = sum(of_word(model, min(len(word.encode()) + 2, model.max_characters)) for word in words)
    return spelled + of_lstms(model) * sum(map(len, sentences))


def words_of(batch: Batch) -> list[tuple[int, int]]:
    """The distinct words of all devices as (length in characters, how many)."""
    found = Counter()
    for words, count in zip(batch.words, batch.count, strict=True):
        found.update((words[:count] != PADDING).sum(1).tolist())
    return sorted(found.items())


def of_training_step(model: ModelConfig, positions: int, words: Iterable[tuple[int, int]], negatives: int) -> int:
    """A step over so many positions, whose distinct words are (length in characters, how many), sampled softmax.

    The backward pass takes two products for each of the forward pass.
    """
    spelled = sum(count * of_word(model, length) for length, count in words)
    softmax = 2 * 2 * positions * (negatives + 1) * model.projection_dim
    return 3 * (of_lstms(model) * positions + spelled + softmax)


def exchanged(program: str) -> Counter[str]:
    """Bytes of every collective's result in a compiled program, by the collective's name.

    Not of those that are hardly ever carried out.
    """
    found = Counter()
    lines = "\n".join(line for line in program.splitlines() if HARDLY_EVER not in line)
    for results, name in re.findall(r"= (.*) (all-reduce|all-gather|reduce-scatter|all-to-all)\(", lines):
        for kind, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", results):
            size = prod(int(length) for length in shape.split(",") if length)
            found[name] += size * int(re.sub("[a-z]+", "", kind)) // 8
    return found
