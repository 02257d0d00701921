"""The commands: `elmo-jax train | embed | models | download | vocab | tokenize | perplexity | nearest | ...`."""

import functools
import time
from collections.abc import Iterable
from typing import Literal

import tyro
from tqdm import tqdm

import elmo_jax
from elmo_jax.arrays import Unwritable
from elmo_jax.compilation import keep_compiled
from elmo_jax.config import Precision, TextFormat
from elmo_jax.convert import Form, write_as
from elmo_jax.corpus import BUILTIN, Corpus, WordCounts, cached, count_words, sentences
from elmo_jax.curves import check_picture, save
from elmo_jax.curves import draw as draw_runs
from elmo_jax.dump import nearest as nearest_in_dump
from elmo_jax.elmo import Layers, StateMode, load
from elmo_jax.engine import Pool
from elmo_jax.errors import InputError, exit_on_bad_input, needing
from elmo_jax.evaluation import check_rows, check_scoring, evaluator, prepared
from elmo_jax.files import as_path, check_output
from elmo_jax.folders import model_files
from elmo_jax.mix import Mix
from elmo_jax.outputs import Compression, Shard, Target, VectorType, Writer
from elmo_jax.published import MODELS, here, local, read_any
from elmo_jax.published import download as download_model
from elmo_jax.scores import score as score_text
from elmo_jax.scores import write as write_scores
from elmo_jax.sources import STANDARD_INPUT, TextForm, files_of, read_input
from elmo_jax.streams import prefetch
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, read_model, write_folder


def train(argv: list[str]) -> None:
    """Pretrains a model on text, or goes on with a run that was stopped; `elmo-jax train tiny --help` shows more."""
    with needing("train"):
        from elmo_jax import parallel, pretraining
        from elmo_jax.lifecycle import ending_together
    arguments = pretraining.parse(argv)
    keep_compiled()
    parallel.initialize(arguments.distributed)
    with ending_together(arguments.workdir):
        pretraining.run(arguments)


def embed(
    input: str,
    output: str,
    model: str | None = None,
    options: str | None = None,
    weights: str | None = None,
    vocab: str | None = None,
    layers: Layers = "average",
    state: StateMode = "warm",
    precision: Precision = "float32",
    boundaries: bool = False,
    batch_size: int | None = None,
    mix: str | None = None,
    mix_weights: tuple[float, ...] = (),
    mix_gamma: float = 1.0,
    text_format: TextFormat | None = None,
    text_column: str | None = None,
    pool: Pool | None = None,
    dtype: VectorType = "float32",
    compression: Compression | None = None,
    shard: str | None = None,
) -> None:
    """Writes the vectors of every line of a text, in the format that the end of the output's name says.

    .hdf5 or .h5: that of bilm-tf and AllenNLP: dataset "i" holds line i (from 0): [tokens, 2P], or [L + 1, tokens, 2P]
    with --layers all. .parquet: a row for each line. None: a folder, vectors in one array that is mapped into memory.
    elmo_jax.read_embeddings reads them all. A blank line has no tokens, [0, 2P]. The tokens <S> and </S> in a line are
    read as the boundary marks that they name.

    Stopped at any moment, the same command goes on where it was, with what it keeps in OUTPUT.partial, and the output
    is the same (of standard input, give the same text again; with --state carry it begins again).

    Args:
        input: Text file or glob, UTF-8, plain or .gz, .bz2, .xz, .zst: a sentence a line, tokens separated by spaces;
            or .jsonl, .conllu, .conll, .parquet; or tfds:DATASET/SPLIT; "-" reads standard input.
        output: File or folder to write; it appears only when it is whole.
        model: Name of a published model (`elmo-jax models` lists them), model folder (options.json, weights.hdf5,
            perhaps vocab.txt), training workdir, folder of ELMoForManyLangs, or archive (.zip of NLPL, .tar.gz of
            AllenNLP, which may need --options).
        options: In place of --model: the model's options.json, with --weights.
        weights: In place of --model: the model's weights.hdf5, with --options.
        vocab: With --options and --weights: vocabulary, for models without characters.
        layers: Average of all layers, the top layer, all layers, or their mix: that of --mix or --mix_weights, else the
            one that was learned with the model.
        state: LSTM state at the beginning of a sentence: a fixed warm state, zero, or carried on from the sentence
            before in the same row (bilm-tf's stateful behaviour).
        precision: Inputs of the matrix products, which are summed in float32.
        boundaries: Keep the vectors of the boundaries <S> and </S>.
        batch_size: Rows of sentences read at a time; by default chosen by the length of the text.
        mix: With --layers mix: JSON file, {"weights": [0.1, 0.2, 0.7], "gamma": 1.0, "layer_norm": false}.
        mix_weights: With --layers mix: a number for each layer, word vectors first; a softmax makes them sum to 1.
        mix_gamma: With --layers mix: factor of the sum.
        text_format: Format of the text; by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
        pool: One vector for each line: the mean, or number by number the largest, of its tokens' vectors.
        dtype: Numbers of the output; float16 takes half the room.
        compression: Of .hdf5 and .parquet. Vectors shrink by a tenth or less; in HDF5 a line takes 3 kB more.
        shard: I/N embeds a part of the text into the folder OUTPUT, where the parts 0/N to N-1/N, of as many processes
            or machines, make up the whole.
    """
    part = None if shard is None else Shard.parse(shard)
    target = Target.of(output, part)
    if model is not None and weights is vocab is None:
        model = local(model)
        files = [*model_files(model), options, mix]
    else:
        files = [model, options, weights, vocab, mix]
    target.check([*files_of([input], "--input"), *files])
    if model is None and (options is None or weights is None):
        raise InputError("which model? Give --model FOLDER, or --options FILE and --weights FILE")
    if mix is not None and mix_weights:
        raise InputError("--mix and --mix_weights exclude each other")
    learned = None if mix is None else Mix.load(mix)
    if mix_weights:
        learned = Mix(mix_weights, mix_gamma)
    if layers != "mix" and learned is not None:
        raise InputError("--layers mix and --mix or --mix_weights go together; give both, or neither")
    elmo = load(model, options=options, weights=weights, vocab=vocab)
    read = functools.partial(read_input, [input], text_format, text_column)
    chosen = {"layers": layers, "state": state, "precision": precision, "boundaries": boundaries}
    chosen |= {"batch_size": batch_size, "mix": learned, "pool": pool}
    print(Writer(elmo, read, target, chosen, dtype, compression, part).write())


def models() -> None:
    """Lists the published models that --model, --init and elmo_jax.load take by name: size, licence, what it is.

    A star stands before those that have been downloaded.
    """
    width = max(map(len, MODELS))
    for name, model in MODELS.items():
        size = "?" if model.size is None else f"{model.size / 1e6:,.0f} MB"
        print(f"{'*' if here(name) else ' '} {name:{width}} {size:>8}  {model.licence:15}  {model.what}")


def download(name: tyro.conf.Positional[str]) -> None:
    """Downloads a published model into the user's cache, where loading it finds it, and prints its folder.

    The cache is elmo_jax/models in $XDG_CACHE_HOME or ~/.cache. With ELMO_JAX_MODELS=https://MIRROR in the environment
    the files come from there, under the paths that they have where they were published. A download that was cut goes on
    where it stopped; a model that is there is checked, and downloaded again if it is damaged.

    Args:
        name: One of those that `elmo-jax models` lists, or hf://OWNER/NAME[@REVISION] for a repository of the Hugging
            Face Hub, which is kept in the Hub's own cache.
    """
    print(download_model(name, check=True))


def vocab(
    text: tyro.conf.Positional[tuple[str, ...]],
    output: str,
    max_size: int | None = None,
    min_count: int = 1,
    max_characters: int = 50,
    text_format: TextFormat | None = None,
    text_column: str | None = None,
) -> None:
    """Counts the words of a text and writes a vocabulary: <S>, </S>, <UNK>, then the words, most frequent first.

    Args:
        text: Text files or globs, as --data.train, tfds:DATASET/SPLIT, "-" for standard input, or "builtin".
        output: File to write, a word a line.
        max_size: Words to keep at most, the three special ones included.
        min_count: Leave out words that occur less often.
        max_characters: Limit of the model, begin and end of word included, for the report of words that it cuts.
        text_format: Format of the text; by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
    """
    if not text:
        raise InputError("which text? Give elmo-jax vocab TEXT... --output FILE")
    if max_size is not None and max_size < 3:
        raise InputError(f"max_size is {max_size}; it must be 3 or more, for <S>, </S> and <UNK>")
    check_output(output, *files_of((name for name in text if name != BUILTIN), "TEXT"))
    form = TextForm(text_format, text_column)
    counts = WordCounts(sentences(text, "TEXT", progress="counting words", form=form))
    if not counts.tokens:
        raise InputError(f"{' '.join(text)} has no words; give text with a sentence a line, tokens separated by spaces")
    vocabulary = Vocabulary.from_counts(counts, max_size, min_count)
    vocabulary.save(as_path(output))
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


def tokenize(
    text: tyro.conf.Positional[tuple[str, ...]],
    vocab: str | None = None,
    cache: str | None = None,
    text_format: TextFormat | None = None,
    text_column: str | None = None,
) -> None:
    """Keeps the numbers of a text, so that every later start of training on it begins at once.

    Training does the same at its first start; this does it ahead, where no devices wait. `elmo-jax train` finds them
    by the text's files, which must not have changed, and the vocabulary. Interrupted, it goes on where it was.

    Args:
        text: Text files or globs, or tfds:DATASET/SPLIT: all that --data.train (or --data.heldout) names.
        vocab: Vocabulary, as --data.vocab; by default counted from the text, as in training.
        cache: Folder to keep them in, as --data.cache; by default elmo_jax/text in $XDG_CACHE_HOME or ~/.cache.
        text_format: As --data.text_format: by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
    """
    if not text or text == (BUILTIN,):
        raise InputError("which text? Give elmo-jax tokenize TEXT...: files or tfds:DATASET/SPLIT, not builtin")
    form = TextForm(text_format, text_column)
    vocabulary = count_words(text, "TEXT", form) if vocab is None else Vocabulary.load(as_path(vocab))
    begin = time.perf_counter()
    try:
        corpus, folder = cached(text, "TEXT", vocabulary, cache, form)
    except Unwritable as error:
        raise InputError(str(error)) from None
    tokens = len(corpus.types) - 2 * len(corpus)
    print(
        f"{len(corpus):,} sentences, {tokens:,} tokens, {corpus.unknown:.1%} <UNK>, are in {folder} "
        f"({tokens / (time.perf_counter() - begin):,.0f} tokens a second)"
    )


def perplexity(
    input: str,
    model: str | None = None,
    options: str | None = None,
    weights: str | None = None,
    vocab: str | None = None,
    softmax: str | None = None,
    state: Literal["carry", "zero", "warm"] = "carry",
    precision: Precision = "float32",
    batch_size: int = 32,
    window: int = 32,
    text_format: TextFormat | None = None,
    text_column: str | None = None,
) -> None:
    """Measures the perplexity of a text, over every token, by the full softmax.

    Args:
        input: Text as for embed, or "builtin" for the held-out tenth of the built-in text.
        model: Model as for embed that has a vocab.txt and a softmax.hdf5, as those of training runs do.
        options: In place of --model: the model's options.json, with --weights, --vocab and --softmax.
        weights: In place of --model: the model's weights.hdf5.
        vocab: In place of --model: the model's vocabulary.
        softmax: In place of --model: the model's softmax.hdf5.
        state: LSTM state at the beginning of a sentence: carried on within a row (as in training), zero, or warm.
        precision: Inputs of the matrix products.
        batch_size: Rows of sentences, on all devices together.
        window: Positions read at a time.
        text_format: Format of the text; by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
    """
    check_rows(batch_size, window)
    folder = _read_model(model, options, weights, vocab, softmax)
    check_scoring(folder, model or weights)
    text = sentences((input,), "--input", True, "reading", TextForm(text_format, text_column))
    corpus = Corpus(text, folder.vocabulary, input)
    parameters, batches, begin = prepared(folder, corpus, state, batch_size, window)
    evaluate = evaluator(folder.model, precision)
    shown = tqdm(prefetch(batches), "perplexity", batches.windows, unit=" windows", leave=False)
    result = evaluate(parameters, shown, begin)
    print(
        f"perplexity {result.both:.3f} (forward {result.forward:.3f}, backward {result.backward:.3f}) "
        f"over {corpus.tokens:,} tokens, {corpus.unknown:.1%} <UNK>, state {state}"
    )


def score(
    input: str,
    output: str,
    model: str | None = None,
    options: str | None = None,
    weights: str | None = None,
    vocab: str | None = None,
    softmax: str | None = None,
    top: int = 0,
    state: StateMode = "warm",
    precision: Precision = "float32",
    batch_size: int = 32,
    window: int = 32,
    text_format: TextFormat | None = None,
    text_column: str | None = None,
) -> None:
    """Writes the log-probability of each token of a text, forward and backward, as a JSON object a line.

    Of a line of n tokens: "tokens"; "unknown", which of them the vocabulary lacks, so that they are scored as <UNK>;
    "forward", natural logarithms of the probability of each token after those before it, and last of </S>, n + 1
    numbers; "backward", of each token before those after it, and last of <S>; "both", their mean; "sums" of the three.
    A blank line has none. With --top, "forward_top" and "backward_top" have for each of the n + 1 the words that the
    model expects in its place, with their probabilities.

    Args:
        input: Text as for embed, or "builtin" for the held-out tenth of the built-in text.
        output: File to write, .jsonl; it appears only when it is whole.
        model: Model as for perplexity, with a vocab.txt and a softmax.hdf5.
        options: In place of --model: the model's options.json, with --weights, --vocab and --softmax.
        weights: In place of --model: the model's weights.hdf5.
        vocab: In place of --model: the model's vocabulary.
        softmax: In place of --model: the model's softmax.hdf5.
        top: How many of the most probable words of each position to write.
        state: LSTM state at the beginning of a sentence: warm or zero, by which a sentence's score depends on it alone,
            or carried on within a row, as in training.
        precision: Inputs of the matrix products.
        batch_size: Rows of sentences, on all devices together.
        window: Positions read at a time.
        text_format: Format of the text; by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
    """
    if not output.endswith(".jsonl"):
        raise InputError(f"--output is {output}; give a file that ends in .jsonl")
    files = model_files(local(model)) if model is not None and not options and not weights else []
    names = [] if input == BUILTIN else files_of([input], "--input")
    check_output(output, *names, *files, options, weights, vocab, softmax)
    folder = _read_model(model, options, weights, vocab, softmax)
    check_scoring(folder, model or weights)
    if input == BUILTIN:
        text: Iterable[list[str]] = sentences((BUILTIN,), "--input", True)
    else:
        text = read_input([input], text_format, text_column, progress="reading")
    chosen = {"state": state, "precision": precision, "top": top, "batch_size": batch_size, "window": window}
    total = write_scores(score_text(folder, text, **chosen), output)
    print(
        f"wrote {output}, {total.lines:,} lines: perplexity {total.perplexity.both:.3f} (forward "
        f"{total.perplexity.forward:.3f}, backward {total.perplexity.backward:.3f}) over {total.predictions:,} tokens, "
        f"{total.unknown:.1%} <UNK>, state {state}"
    )


def _read_model(model: str | None, *files: str | None) -> ModelFolder:
    """A model with its softmax, from a folder or from its files (options, weights, vocab, softmax)."""
    options, weights, *others = (None if file is None else as_path(file) for file in files)
    if model is not None and not any(files):
        return read_any(model, with_softmax=True)
    if model is None and options is not None and weights is not None:
        return read_model(options, weights, *others)
    raise InputError("give --model, or --options and --weights with --vocab and --softmax")


def nearest(embeddings: tyro.conf.Positional[str], word: str, neighbours: int = 3) -> None:
    """Shows, for occurrences of a word in embedded text, the contexts and the other words with the nearest vectors.

    Ten occurrences at most, evenly chosen from the text; capital letters count.

    Args:
        embeddings: HDF5 file that `elmo-jax embed` wrote (one vector a token: not --layers all, no --boundaries).
        word: The word to look at.
        neighbours: Contexts, and other words, to show for each occurrence.
    """
    if neighbours < 1:
        raise InputError(f"neighbours is {neighbours}; it must be 1 or more")
    for occurrence in nearest_in_dump(as_path(embeddings), word, neighbours):
        print(occurrence.context)
        for kind, neighbours_of_kind in (("same word", occurrence.same_word), ("other word", occurrence.other_words)):
            for similarity, context in neighbours_of_kind:
                print(f"    {kind:10}  {similarity:.3f}  {context}")


def convert(
    source: tyro.conf.Positional[str],
    dest: tyro.conf.Positional[str],
    format: Form | None = None,
    options: str | None = None,
    vocab: str | None = None,
    rows: int | None = None,
) -> None:
    """Writes a model in another form, or makes of a run of bilm-tf one to go on with.

    Of a folder that bilm-tf saved into (options.json, checkpoint, model.ckpt...), with --vocab and no --format, it
    makes a training workdir. Go on with `elmo-jax train DEST/config.json --workdir DEST --data.train TEXT --train.steps
    N`. The step and Adagrad's accumulators are kept; the LSTM state, which bilm-tf does not save, begins with zero.

    Args:
        source: Name of a published model, model folder, training workdir, folder of ELMoForManyLangs or of bilm-tf's
            checkpoints, or archive (.zip of NLPL, .tar.gz of AllenNLP).
        dest: Folder to write, or .zip of NLPL.
        format: A model folder with weights in hdf5 or safetensors, an archive of nlpl, or a folder of ELMoForManyLangs;
            by default nlpl if DEST ends in .zip, else hdf5.
        options: For an archive of AllenNLP without it: the options.json of its ELMo.
        vocab: For a run of bilm-tf to go on with: its vocabulary file.
        rows: For such a run: rows on all devices together; by default the batch_size of options.json, which is that of
            one device.
    """
    if vocab is None:
        if rows is not None:
            raise InputError("--rows is of a run to go on with; give its --vocab too")
        form = format or ("nlpl" if dest.endswith(".zip") else "hdf5")
        model = read_any(source, with_softmax=True, options=options)
        left = write_as(model, as_path(dest), form)
        print(f"wrote {dest}" + (f", which has no place for {' and '.join(left)}" if left else ""))
        return
    if format is not None or options is not None:
        raise InputError("--vocab is of a run to go on with, a training workdir; it and --format exclude each other")
    with needing("train"):
        from elmo_jax.parallel import use_one_cpu
        from elmo_jax.restart import restart
    use_one_cpu()
    restart(as_path(source), as_path(dest), as_path(vocab), rows)
    print(f"wrote {dest}")


def export(
    workdir: tyro.conf.Positional[str],
    output: str | None = None,
    step: int | None = None,
    best: bool = False,
    language: str | None = None,
    licence: str | None = None,
    results: str | None = None,
) -> None:
    """Writes a model folder from a checkpoint of a run, with a model card.

    options.json, weights.hdf5, softmax.hdf5, vocab.txt, and README.md: data, size, figures, limits, licence. A
    README.md that is there stays as it is.

    Args:
        workdir: Folder of the run.
        output: Folder to write; by default model/ in the workdir.
        step: Which checkpoint; by default the newest.
        best: Take the checkpoint with the lowest held-out perplexity.
        language: For the card: the text's language, as "en".
        licence: For the card: under which licence the model may be used, as "cc-by-4.0".
        results: For the card: results.md of `elmo-jax evaluate`, what the model reaches on tasks.
    """
    table = None if results is None else as_path(results).read_text()
    with needing("train"):
        from elmo_jax.card import card, write_card
        from elmo_jax.checkpoint import Checkpoints
        from elmo_jax.parallel import device_count, use_one_cpu
        from elmo_jax.pretraining import Stand, checkpoint_shapes
        from elmo_jax.workdir import Workdir
    use_one_cpu()
    run = Workdir(as_path(workdir))
    begun = run.begun() if run.config.exists() else None
    if begun is None or begun.vocabulary is None:
        raise InputError(f"{workdir} is not the folder of a training run: it has no config.json and vocab.txt")
    if best and step is not None:
        raise InputError("--step and --best exclude each other")
    vocabulary = begun.vocabulary
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        perplexities = {
            step: value for step, value in run.heldout_perplexities().items() if step in checkpoints.steps()
        }
        choices = sorted(perplexities, key=perplexities.__getitem__) if best else checkpoints.steps()[::-1]
        if step is None and not choices:
            raise InputError(f"{workdir} has no checkpoint{' with held-out perplexity' if best else ''} yet")
        like = checkpoint_shapes(begun.config, len(vocabulary), run.rows(begun, begun.config, device_count()))
        stand = Stand.of(checkpoints.read(choices[0] if step is None else step, like))
    folder = run.model if output is None else as_path(output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "options.json").exists():
        raise InputError(f"{folder} holds files but no model; give a new folder, or that of a model to replace")
    write_folder(folder, begun.config.model, stand.parameters(len(vocabulary), begun.rows), vocabulary)
    written = write_card(folder, card(begun, vocabulary, stand.step, run.lines(), licence, language, table))
    kept = "" if written else f"; {folder / 'README.md'} was there, and stays"
    print(f"wrote the model of step {stand.step:,} to {folder}{kept}")


def curves(workdirs: tyro.conf.Positional[tuple[str, ...]], output: str) -> None:
    """Draws training runs side by side: perplexity of held-out text and of training, gradient norms, speed.

    Args:
        workdirs: Folders of the runs.
        output: Picture to write, .png or .svg.
    """
    draw_runs(workdirs, as_path(output))
    print(f"wrote {output}")


def evaluate(
    tasks: tyro.conf.Positional[tuple[str, ...]],
    model: tuple[str, ...],
    output: str,
    baselines: tuple[str, ...] = (),
    debias: str | None = None,
    seeds: int = 5,
    limit: int | None = None,
    fine_tune: bool = False,
) -> None:
    """Measures what vectors know, of several models and baselines, on tasks read from files; prints a table.

    Tasks are TASK=PATH: word-sense, sentiment, question-type, chunking, entities, answers, similarity, ratings, bias,
    adaptation; docs/evaluating.md says which files each reads. All are read and checked before anything is computed.
    Stopped at any moment, the same command goes on with what it keeps in OUTPUT/pieces.

    Args:
        tasks: TASK=PATH ..., as word-sense=line.jsonl chunking=FOLDER.
        model: Models as for embed.
        output: Folder for results.json, results.md, and what is kept of pieces that are done.
        baselines: What to compare with: untrained (each model's shape with initial parameters), vectors:FILE
            (word2vec's or GloVe's text), hf:NAME (a model or folder of transformers).
        debias: File of word sets with pairs (as for bias): measure each model and baseline also with the direction that
            the pairs differ by projected out.
        seeds: How often what is learned by random numbers is learned anew; intervals are over them.
        limit: Take only the first so many examples of each part, for a quick look.
        fine_tune: Fine-tune the models, too, on tasks that label sentences or tokens.
    """
    with needing("tasks"):
        from elmo_jax.tasks import command
        from elmo_jax.tasks.evaluate import Options
        from elmo_jax.tasks.report import table
    options = Options(seeds, limit, fine_tune, output)
    print(table(command.evaluate(tasks, model, baselines, debias, options)))


def draw(argv: list[str]) -> None:
    """Draws what vectors know: a word's senses, words in two contexts, the results of evaluate."""
    read = functools.partial(tyro.extras.subcommand_cli_from_dict, PICTURES, prog="elmo-jax draw", use_underscores=True)
    read(args=argv, description=draw.__doc__)


def explore(
    model: tyro.conf.Positional[str],
    text: tyro.conf.Positional[str],
    output: str,
    words: tuple[str, ...] = (),
    layers: tuple[int, ...] = (),
    text_format: TextFormat | None = None,
    text_column: str | None = None,
) -> None:
    """Writes a page for the browser on which words can be looked at in all their contexts, layer by layer.

    One HTML file, which needs no network: pick a word and a layer, and see where its occurrences lie in the plane of
    their first two principal components; a click shows the contexts with the nearest vectors. Of a word, 200
    occurrences at most are on the page, drawn by chance, always the same.

    Args:
        model: Model as for embed; or a baseline, vectors:FILE or hf:NAME, as for evaluate.
        text: Text as for embed, or "builtin" for the part of the built-in text that is not held out.
        output: Page to write, .html.
        words: Words to show, as they are written in the text, 50 at most; by default the 20 most frequent ones
            after the 150 most frequent, which mean little by themselves.
        layers: Numbers of the layers to show, from 0, that of the words; by default all.
        text_format: Format of the text; by default what the end of the file's name says, else lines.
        text_column: Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of
            the column of CoNLL, from 1, or name of that of CoNLL-U, FORM by default.
    """
    from elmo_jax.explore import explored, write_page
    from elmo_jax.pictures import system_of

    if not output.endswith(".html"):
        raise InputError(f"--output is {output}; give a file that ends in .html")
    check_output(output, *([] if text == BUILTIN else files_of([text], "TEXT")))
    if text == STANDARD_INPUT and not words:
        raise InputError("the text is read twice, to count its words first, and standard input only once; give --words")
    read = lambda: sentences((text,), "TEXT", progress="reading", form=TextForm(text_format, text_column))
    found = explored(system_of(model), read, words, layers)
    write_page(found, text.rpartition("/")[2], output)  # the page may go elsewhere
    occurrences = sum(len(word["contexts"]) for word in found["words"])
    of_all = sum(word["count"] for word in found["words"])
    print(f"wrote {output}: {len(found['words'])} words, {occurrences:,} of their {of_all:,} occurrences")


def draw_senses(model: str, data: str, output: str, projection: Literal["pca", "umap"] = "pca") -> None:
    """Draws a word's occurrences in the plane, layer by layer, in the colours of their senses.

    Of more than 500 occurrences, 500 are drawn by chance, always the same.

    Args:
        model: Model as for embed; or a baseline, vectors:FILE or hf:NAME, as for evaluate.
        data: Occurrences of one word, .jsonl, as for evaluate word-sense.
        output: Picture to write, .png or .svg.
        projection: How vectors become points: their first two principal components, or UMAP, if umap-learn is
            installed.
    """
    from elmo_jax import pictures
    from elmo_jax.tasks.formats import read_occurrences

    check_picture(as_path(output), data)
    words = read_occurrences(data)
    if len(words) > 1:
        raise InputError(f"{data} has {len(words)} words, a file for each; give the file of one")
    save(pictures.senses(pictures.system_of(model), words[0], projection), as_path(output))
    print(f"wrote {output}")


def draw_similarity(model: str, first: str, second: str, output: str) -> None:
    """Draws the cosines of the words of two sentences as heat maps, layer by layer.

    A word that stands in both has the same vector in the layer of the words, and others above it.

    Args:
        model: Model as for embed; or a baseline, vectors:FILE or hf:NAME, as for evaluate.
        first: A sentence, tokens separated by spaces, 20 at most: the rows.
        second: Another one, the columns.
        output: Picture to write, .png or .svg.
    """
    from elmo_jax import pictures

    check_picture(as_path(output))
    sentences_of = first.split(), second.split()
    save(pictures.similarity(pictures.system_of(model), *sentences_of), as_path(output))
    print(f"wrote {output}")


def draw_mixes(results: tyro.conf.Positional[str], output: str, tasks: tuple[str, ...] = ()) -> None:
    """Draws the learned mixes of layers, a bar for each task and system.

    Args:
        results: The results.json that evaluate wrote.
        output: Picture to write, .png or .svg.
        tasks: Those to draw; by default all that learn a mix.
    """
    from elmo_jax import pictures

    check_picture(as_path(output), results)
    save(pictures.mixes(pictures.of_tasks(pictures.read_results(results), tasks)), as_path(output))
    print(f"wrote {output}")


def draw_probes(results: tyro.conf.Positional[str], output: str, tasks: tuple[str, ...] = ()) -> None:
    """Draws what each layer of each system reaches, with intervals of 95 %, a panel for each task, data and metric.

    Args:
        results: The results.json that evaluate wrote.
        output: Picture to write, .png or .svg.
        tasks: Those to draw; by default all that have figures of several layers.
    """
    from elmo_jax import pictures

    check_picture(as_path(output), results)
    save(pictures.probes(pictures.of_tasks(pictures.read_results(results), tasks)), as_path(output))
    print(f"wrote {output}")


PICTURES = {"senses": draw_senses, "similarity": draw_similarity, "mixes": draw_mixes, "probes": draw_probes}

COMMANDS = {
    "train": train,
    "embed": embed,
    "models": models,
    "download": download,
    "vocab": vocab,
    "tokenize": tokenize,
    "perplexity": perplexity,
    "evaluate": evaluate,
    "score": score,
    "nearest": nearest,
    "convert": convert,
    "export": export,
    "curves": curves,
    "draw": draw,
    "explore": explore,
}


@exit_on_bad_input
def main(argv: list[str]) -> None:
    """Runs a command line, without the program's name."""
    if argv[:1] == ["--version"]:
        print(elmo_jax.__version__)
        return
    if argv[:1] == ["train"]:  # its options' defaults depend on the config that it names
        train(argv[1:])
        return
    keep_compiled()
    if argv[:1] == ["draw"]:  # which has commands of its own
        draw(argv[1:])
        return
    read = functools.partial(tyro.extras.subcommand_cli_from_dict, COMMANDS, prog="elmo-jax", use_underscores=True)
    read(args=argv)
