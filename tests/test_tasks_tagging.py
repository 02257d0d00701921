"""The CRF against all paths, spans against seqeval, batches, and taggers on planted vectors."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from planted import Planted

from elmo_jax import InputError
from elmo_jax.tasks import tagging
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.formats import Tagged
from elmo_jax.tasks.probes import FINE_TUNED
from elmo_jax.tasks.systems import MIX, ElmoSystem

SEQEVAL = json.loads((Path(__file__).parent / "data" / "seqeval.json").read_text())
ROWS, POSITIONS, TAGS = 4, 5, 3
LENGTHS = (5, 1, 3, 0)


@pytest.fixture(scope="module")
def field():
    generator = np.random.default_rng(0)
    shapes = {"transitions": (TAGS, TAGS), "begin": (TAGS,), "end": (TAGS,)}
    return {name: 2 * generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def emissions():
    return 2 * np.random.default_rng(1).normal(size=(ROWS, POSITIONS, TAGS)).astype(np.float32)


PATHS = np.random.default_rng(2).integers(0, TAGS, (ROWS, POSITIONS)).astype(np.int32)


@pytest.fixture(scope="module")
def found(field, emissions):
    """What the functions of the CRF give for rows of LENGTHS tokens."""
    mask = np.arange(POSITIONS) < np.array(LENGTHS)[:, None]

    @jax.jit
    def compute(field, emissions, tags, mask):
        partition = lambda emissions: tagging.log_partition(field, emissions, mask)
        return {
            "partition": partition(emissions),
            "score": tagging.path_score(field, emissions, tags, mask),
            "best": tagging.viterbi(field, emissions, mask),
            "gradient": jax.grad(lambda emissions: partition(emissions).sum())(emissions),
            "loss": tagging.unlikelihood(field, emissions, tags, mask),
        }

    return jax.tree.map(np.asarray, compute(field, emissions, PATHS, mask))


def score_of(field, emissions, path):
    """By the definition."""
    moves = sum(field["transitions"][before, after] for before, after in itertools.pairwise(path))
    return field["begin"][path[0]] + field["end"][path[-1]] + moves + sum(emissions[range(len(path)), path])


def paths(length):
    return [list(path) for path in itertools.product(range(TAGS), repeat=length)]


@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_crf_is_what_all_paths_say(field, emissions, found, row):
    """The partition is their sum, the best the largest, the gradient how probable a tag is at a place."""
    length = LENGTHS[row]
    every = np.array([score_of(field, emissions[row], path) for path in paths(length)], np.float64)
    assert found["partition"][row] == pytest.approx(np.logaddexp.reduce(every), rel=1e-5)
    assert found["score"][row] == pytest.approx(score_of(field, emissions[row], PATHS[row, :length].tolist()), rel=1e-5)
    assert found["best"][row, :length].tolist() == paths(length)[every.argmax()]
    expected = np.zeros((POSITIONS, TAGS))
    for path, probability in zip(paths(length), np.exp(every - np.logaddexp.reduce(every)), strict=True):
        expected[range(length), path] += probability
    np.testing.assert_allclose(found["gradient"][row], expected, atol=1e-5)


def test_the_loss_is_of_tokens(found):
    of_rows = (found["partition"] - found["score"])[:3]
    assert found["loss"] == pytest.approx(of_rows.sum() / sum(LENGTHS), rel=1e-5)
    assert (of_rows > 0).all()


@pytest.mark.parametrize("scheme", SEQEVAL)
def test_spans_are_seqevals(scheme):
    values = SEQEVAL[scheme]
    gold, predicted = ([Tagged(["a"] * len(tags), tags) for tags in values[name]] for name in ("gold", "predicted"))
    tagset = tagging.Tagset.of(gold, predicted, scheme)
    begins = tagging.begins_of(gold)[:-1]
    found = tagging.score(tagset, tagset.numbers(gold), tagset.numbers(predicted), begins)
    assert found == pytest.approx((values["F1"], values["precision"], values["recall"]))
    assert 0.2 < found.value < 0.9


def test_spans_end_with_the_sentence():
    one, two = [Tagged(["a", "b"], ["B-X", "I-X"])], [Tagged(["a"], ["B-X"]), Tagged(["b"], ["I-X"])]
    tagset = tagging.Tagset.of(one, [], "IOB2")
    assert tagset.spans(tagset.numbers(one), tagging.begins_of(one)[:-1]) == {(0, 2, tagset.types[0])}
    assert len(tagset.spans(tagset.numbers(two), tagging.begins_of(two)[:-1])) == 2


def test_plain_tags_have_an_accuracy():
    gold, predicted = ([Tagged(["a"] * 4, tags)] for tags in (["N", "V", "N", "O"], ["N", "N", "N", "O"]))
    tagset = tagging.Tagset.of(gold, predicted, "plain")
    assert tagging.score(tagset, tagset.numbers(gold), tagset.numbers(predicted), np.array([0])).value == 0.75


def test_batches_have_each_sentence_once(monkeypatch):
    monkeypatch.setattr(tagging, "TOKENS_OF_BATCH", 64)
    lengths = np.random.default_rng(0).integers(1, 70, 50)
    sentences = np.arange(0, 50, 2)
    shapes = tagging.shapes_of(lengths, sentences)
    assert [(shape.rows, shape.positions) for shape in shapes] == [(4, 16), (2, 32), (1, 64), (1, 128)]
    batches = list(tagging.shuffled(shapes, [0, 1], 3))
    for seed in (0, 1):
        numbers = np.concatenate([of[seed] for _, of in batches])
        assert sorted(numbers[numbers >= 0]) == sentences.tolist()
    assert any((of[0] != of[1]).any() for _, of in batches)
    for shape, of in batches:
        assert of.shape == (2, shape.rows)
        assert (lengths[of[of >= 0]] <= shape.positions).all()
    alone = [of[0] for _, of in tagging.shuffled(shapes, [1], 3)]
    assert all((one == of[1]).all() for one, (_, of) in zip(alone, batches, strict=True))
    numbers = np.concatenate([of for _, of in tagging.in_turn(shapes)])
    assert sorted(numbers[numbers >= 0]) == sentences.tolist()


def test_predictions_are_in_the_order_of_the_text():
    begins = np.cumsum([0, 3, 20, 1, 2])
    sample = tagging.Sample.of(begins, np.array([0, 1, 3]))
    assert sample.tokens.tolist() == [*range(23), 24, 25]
    assert sample.starts.tolist() == [0, 3, 23]
    found = sample.predictions(lambda _, tokens, mask: np.where(mask, tokens, -1))
    assert found.tolist() == sample.tokens.tolist()


def write_columns(folder, counts, name="columns"):
    """Sentences of names, which begin with a capital and are a span of two tokens, and of other words."""
    folder = folder / name
    folder.mkdir()
    for number, (part, count) in enumerate(counts.items()):
        generator, lines = np.random.default_rng(number), []
        for _ in range(count):
            for _ in range(generator.integers(1, 5)):
                word = generator.integers(10)
                span = (f"N{word} B-PER", f"M{word} I-PER") if generator.random() < 0.5 else (f"w{word} O",)
                lines += span
            lines.append("")
        (folder / f"{part}.conll").write_text("\n".join(lines))
    return folder


def kinds(tokens, position):
    """The second layer tells what kind a word is of, the first nothing."""
    kind = np.eye(4)["NMw".index(tokens[position][0]) if tokens[position] != "a" else 3]
    return np.stack([np.ones(4), 3 * kind])


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return write_columns(tmp_path_factory.mktemp("tags"), {"train": 60, "test": 20})


def test_taggers_learn_from_the_layer_that_knows(columns, monkeypatch):
    monkeypatch.setattr(tagging, "TOKENS_OF_BATCH", 64)
    system = Planted(kinds)
    (piece,) = tagging.entities(str(columns), [system], Options(seeds=2))
    assert piece.name == "entities: columns, planted"
    assert system.calls == []
    figures = piece.figures()
    first, second, mix = figures
    assert [figure.vectors for figure in figures] == ["first", "second", MIX]
    assert {(figure.metric, figure.over) for figure in figures} == {("F1", "2 seeds")}
    assert first.value < 0.7
    assert second.value > 0.95
    assert mix.value > 0.95
    details = mix.details
    assert len(details["values"]) == len(details["gamma"]) == len(details["mix"]) == 2
    assert np.mean(details["values"]) == pytest.approx(mix.value)
    assert [sum(shares) for shares in details["mix"]] == pytest.approx([1, 1])
    assert details["sentences"] == {"learned": 54, "chosen by": 6, "test": 20}
    assert json.loads(json.dumps(details)) == details
    assert "mix" not in second.details


def test_pieces_are_told_apart(columns, elmo, tmp_path):
    write_columns(tmp_path, {"train": 60, "test": 20, "dev": 7})
    systems = [Planted(kinds), ElmoSystem("small", elmo)]
    pieces = tagging.chunking(str(columns), systems, Options(seeds=2, fine_tune=True))
    assert [piece.name.partition(", ")[2] for piece in pieces] == [
        "planted",
        "small",
        "small, fine-tuned, seed 0",
        "small, fine-tuned, seed 1",
    ]
    more = tagging.chunking(str(columns), systems, Options(seeds=3, limit=9))
    other = tagging.chunking(str(tmp_path / "columns"), systems, Options(seeds=2))
    every = [json.dumps(piece.decides, sort_keys=True) for piece in [*pieces, *more, *other]]
    assert len(set(every)) == len(every)


def test_a_part_to_choose_by_and_a_limit(tmp_path):
    folder = write_columns(tmp_path, {"train": 9, "dev": 7, "test": 8})
    file = tagging.read_tagged(str(folder))
    prepared = tagging.Prepared.of("entities", file, 5)
    assert prepared.sentences == file.train[:5] + file.dev[:5]
    assert (prepared.learned.tolist(), prepared.chosen.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert prepared.test == file.test[:5]
    with pytest.raises(InputError, match="the train part of columns has 1 sentence to learn of; give two or more"):
        tagging.Prepared.of("entities", file, 1)


def test_a_tag_that_is_not_learned_is_never_right(tmp_path, capsys):
    folder = write_columns(tmp_path, {"train": 20, "test": 6})
    with (folder / "test.conll").open("a") as file:
        file.write("\nX1 B-LOC\n")
    prepared = tagging.Prepared.of("entities", tagging.read_tagged(str(folder)), None)
    assert prepared.tagset.names == ("B-PER", "I-PER", "O", "B-LOC")
    assert prepared.tagset.classes == 3
    assert "columns: 'B-LOC' are not among the tags to learn of" in capsys.readouterr().err


def test_entities_are_spans(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.conll").write_text("the DET\ncat NOUN\n\n" * 3)
    with pytest.raises(InputError, match=r"has tags of single tokens, as DET; entities are spans, .* give chunking="):
        tagging.entities(str(tmp_path), [], Options())
    assert tagging.chunking(str(tmp_path), [], Options()) == []


@pytest.mark.slow
def test_fine_tuned(columns, elmo, monkeypatch):
    monkeypatch.setattr(tagging, "EPOCHS", 2)
    monkeypatch.setattr(tagging, "TOKENS_OF_BATCH", 128)
    monkeypatch.setattr(tagging, "FEWEST_FINE_TUNING_STEPS", 50)
    pieces = tagging.entities(str(columns), [ElmoSystem("small", elmo)], Options(seeds=1, fine_tune=True))
    (figure,) = pieces[1].figures()
    assert (figure.system, figure.vectors, figure.over) == ("small", FINE_TUNED, "1 seed")
    assert figure.details["seeds"] == [0]
    assert figure.value > 0.5
    assert np.isnan(figure.low)
    (again,) = pieces[1].figures()
    assert again.value == figure.value
