"""`python -m elmo_jax vocab|perplexity|nearest|convert`: the smaller tools."""

import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from etils import epath
from tqdm import tqdm

from elmo_jax.config import Precision
from elmo_jax.convert import convert as convert_checkpoint
from elmo_jax.corpus import Corpus, WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.evaluation import evaluator
from elmo_jax.files import matching
from elmo_jax.model import start_state, zero_state
from elmo_jax.parallel import device_count, replicate
from elmo_jax.streams import LanguageModelStream, word_table
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import open_hdf5, read_folder


def vocab(
    text: tyro.conf.Positional[tuple[str, ...]],
    output: Path,
    max_size: int | None = None,
    min_count: int = 1,
    max_characters: int = 50,
) -> None:
    """Counts the words of a text and writes a vocabulary: <S>, </S>, <UNK>, then the words, most frequent first.

    Args:
        text: Text files or globs, plain or .gz, tfds:DATASET/SPLIT, or "builtin".
        output: File to write, a word a line.
        max_size: Words to keep at most, the three special ones included.
        min_count: Leave out words that occur less often.
        max_characters: Limit of the model, begin and end of word included, for the report of words that it cuts.
    """
    if max_size is not None and max_size < 3:
        raise InputError(f"max_size is {max_size}; it must be 3 or more, for <S>, </S> and <UNK>")
    if output.exists() and any(output.resolve() == Path(file).resolve() for name in text for file in matching(name)):
        raise InputError(f"--output {output} is one of the text files; give another file to write")
    counts = WordCounts(sentences(text, "TEXT", progress="counting words"))
    if not counts.tokens:
        raise InputError(f"{' '.join(text)} has no words; give text with a sentence a line, tokens separated by spaces")
    vocabulary = Vocabulary.from_counts(counts, max_size, min_count)
    vocabulary.save(output)
    words = known = covered = cut = 0
    for word, count in counts:
        words += 1
        if word in vocabulary.index:
            known, covered = known + 1, covered + count
        cut += len(word.encode("utf-8")) > max_characters - 2
    print(
        f"{len(vocabulary):,} words: <S>, </S>, <UNK> and {known:,} of the text's {words:,}, which cover "
        f"{covered / counts.tokens:.2%} of its {counts.tokens:,} tokens; {cut / words:.2%} of the text's words are "
        f"longer than {max_characters - 2} bytes and would be cut"
    )


def perplexity(
    model: Path,
    input: str,
    state: Literal["carry", "zero", "warm"] = "carry",
    precision: Precision = "float32",
    batch_size: int = 32,
    window: int = 32,
) -> None:
    """Measures the perplexity of a text, over every token, by the full softmax.

    Args:
        model: Model folder with vocab.txt and softmax.hdf5, or training workdir.
        input: Text file or glob, or "builtin" for the held-out tenth of the built-in text.
        state: LSTM state at the beginning of a sentence: carried on within a row (as in training), zero, or warm.
        precision: Inputs of the matrix products.
        batch_size: Rows of sentences, on all devices together.
        window: Positions read at a time.
    """
    folder = read_folder(model, with_softmax=True)
    if folder.softmax is None:
        raise InputError(f"{model} has no softmax.hdf5 (with its vocab.txt); perplexity needs the output layer")
    devices = device_count()
    if batch_size < 1 or batch_size % devices:
        raise InputError(f"batch_size is {batch_size}, which cannot be divided by {devices} devices; give a multiple")
    corpus = Corpus(sentences((input,), "--input", heldout=True, progress="reading"), folder.vocabulary, input)
    parameters = replicate({"bilm": folder.parameters, "softmax": folder.softmax})
    encode = word_table(corpus, folder.model).__getitem__
    batches = LanguageModelStream(corpus, batch_size, window, encode, devices=devices, passes=1)
    start = {
        "carry": lambda: None,
        "zero": lambda: zero_state(folder.model),
        "warm": lambda: start_state(*folder[:3], "warm"),
    }
    evaluate = evaluator(folder.model, precision)
    result = evaluate(parameters, tqdm(batches, "perplexity", unit=" windows", leave=False), start[state]())
    print(
        f"perplexity {result.both:.3f} (forward {result.forward:.3f}, backward {result.backward:.3f}) "
        f"over {corpus.tokens:,} tokens, state {state}"
    )


def nearest(embeddings: tyro.conf.Positional[Path], word: str, neighbours: int = 2) -> None:
    """Shows, for every occurrence of a word in embedded text, in which other contexts its vector is most similar.

    Args:
        embeddings: HDF5 file that embed.py wrote (one vector a token: not --layers all, no --boundaries).
        word: The word to look at.
        neighbours: Contexts to show for each.
    """
    contexts, vectors = [], []
    with open_hdf5(embeddings) as file:
        if "sentence_to_index" not in file:
            raise InputError(f"{embeddings} is not a file that embed.py wrote: it has no sentence_to_index")
        for sentence, number in json.loads(file["sentence_to_index"][0]).items():
            tokens, array = sentence.split(" "), file[number]
            if array.shape[:-1] != (len(tokens),) and sentence:
                raise InputError(
                    f"{embeddings} does not hold one vector a token; embed without --layers all and --boundaries"
                )
            for place in (place for place, token in enumerate(tokens) if token == word):
                left, right = tokens[max(0, place - 5) : place], tokens[place + 1 : place + 6]
                contexts.append(" ".join([*left, f"[{word}]", *right]))
                vectors.append(array[place])
    if len(contexts) < 2:
        raise InputError(f"{word!r} occurs {len(contexts)} times in {embeddings}; it must occur at least twice")
    unit = np.stack(vectors)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for number, context in enumerate(contexts):
        similarity = unit @ unit[number]
        similarity[number] = -np.inf
        print(context)
        for other in np.argsort(-similarity)[: min(neighbours, len(contexts) - 1)]:
            print(f"    {similarity[other]:.3f}  {contexts[other]}")


def convert(
    source: tyro.conf.Positional[Path], dest: tyro.conf.Positional[Path], vocab: Path, rows: int | None = None
) -> None:
    """Converts a TensorFlow checkpoint of bilm-tf into a training workdir: a model to use, and a run to go on with.

    Go on with `python train.py DEST/config.json --workdir DEST --data.train TEXT --train.steps N`. The step and
    Adagrad's accumulators are kept; the LSTM state, which bilm-tf does not save, begins with zero. Needs TensorFlow.

    Args:
        source: Folder that bilm-tf saved into: options.json, checkpoint, model.ckpt...
        dest: Folder to write.
        vocab: The vocabulary file of the run.
        rows: Rows on all devices together; by default the batch_size of options.json, which is that of one device.
    """
    convert_checkpoint(epath.Path(source), epath.Path(dest), epath.Path(vocab), rows)
    print(f"wrote {dest}")


@exit_on_bad_input
def main(argv: list[str]) -> None:
    commands = {"vocab": vocab, "perplexity": perplexity, "nearest": nearest, "convert": convert}
    tyro.extras.subcommand_cli_from_dict(commands, prog="python -m elmo_jax", args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
