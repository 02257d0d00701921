"""What gives vectors: models, the untrained control, files of vectors, models of transformers."""

import gzip
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from conftest import SENTENCES, SMALL, random_weights, relative_error, write_random_model

import elmo_jax
from elmo_jax.config import ModelConfig, to_options
from elmo_jax.errors import InputError
from elmo_jax.model import parameter_shapes
from elmo_jax.modules import init_bilm
from elmo_jax.tasks import systems
from elmo_jax.tasks.systems import (
    ElmoSystem,
    TextVectors,
    Transformers,
    Vectors,
    is_number,
    parse_system,
    systems_of,
    untrained,
)
from elmo_jax.weights import write_arrays

GLOVE = "the 1 2 3\ncat -1.5 .5 1e-1\nat the house 7 7 7\nThe 9 9 9\nthe 5 5 5\n\xa0 4 4 4\n"


def vectors_file(folder, content: str | bytes = GLOVE, name: str = "glove.3d.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def system(elmo):
    return ElmoSystem("small", elmo)


@pytest.fixture(scope="module")
def embedded(system):
    return system.embed(SENTENCES)


def test_vectors():
    """Sentences are one behind the other; the mean of one without tokens is zeros, wherever it stands."""
    values = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    vectors = Vectors(values, np.array([0, 0, 2, 2, 5, 5]))
    assert [len(vectors.of(sentence)) for sentence in range(5)] == [0, 2, 0, 3, 0]
    expected = np.zeros((5, 2, 3), np.float32)
    expected[1], expected[3] = values[:2].mean(0), values[2:].mean(0)
    np.testing.assert_array_equal(vectors.pooled(), expected)
    assert Vectors(values[:0], np.array([0, 0])).pooled().shape == (1, 2, 3)


def test_model(system, embedded, elmo):
    """Every layer of every sentence, as the model gives them by themselves."""
    assert system.layers == ("words", "LSTM 1", "LSTM 2")
    assert embedded.values.shape == (sum(map(len, SENTENCES)), 3, 2 * SMALL.projection_dim)
    assert embedded.values.dtype == np.float32
    for number, sentence in enumerate(SENTENCES):
        (alone,) = elmo.embed([sentence], layers="all")
        assert embedded.of(number).shape == (len(sentence), 3, 14)
        assert relative_error(embedded.of(number).swapaxes(0, 1), alone) < 1e-5
    assert system.embed([]).values.shape == (0, 3, 14)
    assert system.embed([[]]).pooled().shape == (1, 3, 14)


def test_identity_of_models(system, elmo, folder, tmp_path):
    """It is the parameters' and options', wherever the model lies."""
    assert ElmoSystem("other", elmo_jax.load(folder)).identity == system.identity
    other = elmo_jax.load(write_random_model(tmp_path / "other", SMALL, seed=1))
    clipped = elmo_jax.load(write_random_model(tmp_path / "clipped", ModelConfig(**vars(SMALL) | {"cell_clip": 2.0})))
    assert len({system.identity, *(ElmoSystem("", model).identity for model in (other, clipped))}) == 3


def test_untrained(elmo, embedded):
    """The shape of the model with the initial parameters of training, whatever its own were."""
    control = untrained(elmo, seed=3)
    initial = init_bilm(jax.random.key(3), elmo.model)
    for module, arrays in control.parameters.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, initial[module][name])
    assert control.model == elmo.model
    assert control.mixes == ()
    vectors = ElmoSystem("untrained", control).embed(SENTENCES).values
    assert vectors.shape == embedded.values.shape
    assert not np.allclose(vectors, embedded.values)


@pytest.mark.parametrize(
    "changes", [{"input": "words"}, {"alphabet": 9, "word_dim": 5, "layers": 1}, {"alphabet": 9}], ids=str
)
def test_untrained_of_all_kinds(changes):
    """Models of words, of characters in a list, and of both have initial parameters of their shape."""
    model = ModelConfig(**vars(SMALL) | changes)
    parameters = jax.eval_shape(lambda key: init_bilm(key, model, 8), jax.random.key(0))
    shapes = {module: {name: array.shape for name, array in arrays.items()} for module, arrays in parameters.items()}
    assert shapes == parameter_shapes(model, 8)


def test_text_vectors(tmp_path, capsys):
    """A token has its own vector, the first of its word, or that of its small letters, or zeros, which is told."""
    glove = TextVectors(vectors_file(tmp_path))
    assert (glove.name, glove.layers, glove.elmo) == ("glove.3d", ("words",), None)
    vectors = glove.embed([["The", "the", "CAT"], [], ["at", "7", "dog"]])
    expected = [[9, 9, 9], [1, 2, 3], [-1.5, 0.5, 0.1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(vectors.values[:, 0], np.array(expected, np.float32))
    assert vectors.begins.tolist() == [0, 3, 3, 6]
    assert capsys.readouterr().err == "glove.3d has no vector of 3 of 6 tokens: zeros\n"
    assert set(glove.found) == {"The", "the", "cat"}
    assert glove.embed([["cat"]]).values.tolist() == [[[-1.5, 0.5, np.float32(0.1)]]]
    assert glove.embed([]).values.shape == (0, 1, 3)
    assert not capsys.readouterr().err


def test_text_vectors_are_streamed_once_for_new_words(tmp_path, monkeypatch):
    """What was looked up, found or not, is not looked up again."""
    glove = TextVectors(vectors_file(tmp_path))
    passes = []
    rows = TextVectors._rows
    monkeypatch.setattr(TextVectors, "_rows", lambda self, what: passes.append(what) or rows(self, what))
    for sentence, expected in ((["cat", "dog"], 1), (["dog", "Cat"], 2), (["cat", "CAT", "dog"], 3), (["CAT"], 3)):
        glove.embed([sentence])
        assert len(passes) == expected


@pytest.mark.parametrize("header", ["", "3 2\n\n"], ids=["GloVe", "word2vec"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", " \n"], ids=["lines", "carriage returns", "spaces"])
@pytest.mark.parametrize("compressed", [False, True])
def test_forms_of_text_vectors(tmp_path, header, ends, compressed):
    content = (header + "5 1 2\nüber 3 4\ne 5 6\n").replace("\n", ends).encode()
    name = "vectors.vec.gz" if compressed else "vectors.vec"
    vectors = TextVectors(vectors_file(tmp_path, gzip.compress(content) if compressed else content, name))
    assert vectors.name == "vectors"
    assert vectors.header == bool(header)
    assert vectors.embed([["über", "5", "3", "e"]]).values[:, 0].tolist() == [[3, 4], [1, 2], [0, 0], [5, 6]]
    assert vectors.identity == TextVectors(vectors_file(tmp_path, content, "other.txt")).identity
    changed = TextVectors(vectors_file(tmp_path, content.replace(b"6", b"7"), "changed.txt"))
    assert vectors.identity != changed.identity


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2\ncat 1\n", "line 2, has 1 numbers, not 2"),
        ("the 1 2\ncat 1 2 3\n", "line 2, has 3 numbers, not 2"),
        ("the 1 2\ncat 1 two\n", "line 2, has b'two', which is no number"),
        ("the 1 2\ncat 1 nan\n", "line 2, has b'nan', which is no number"),
        ("the cat sat\non the mat\n", "line 1, begins with b'the cat sat"),
        ("the\ncat\n", "line 1, begins with b'the"),
        ("3 2\nthe 1 2\ncat 1 2\n", "tells of 3 vectors, but has 2"),
        ("3 2\n", "has no vectors"),
        ("", "has no vectors"),
        (b"2 300\nthe \x00\x01\x02\x03\n\x04cat \xff\n", "line 2, has 1 numbers, not 300; give vectors as text"),
        (b"\x1f\x8b1234", "holds gzip data"),
    ],
)  # fmt: skip
def test_bad_text_vectors(tmp_path, content, message):
    """The line is told, before anything is computed but for numbers that nobody asked for."""
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as told:
        TextVectors(vectors_file(tmp_path, content)).embed([["cat"]])
    assert "glove.3d.txt" in str(told.value)


def test_numbers():
    assert [is_number(text) for text in (b"1", b"-.5e-3", b"x", b"nan", b"inf", b"1e39", b"")] == [True] * 2 + [
        False
    ] * 5


@pytest.fixture
def quickly(monkeypatch):
    """Controls have zeros for parameters, for which nothing is compiled."""
    zeros = lambda elmo: elmo.with_parameters(jax.tree.map(np.zeros_like, elmo.parameters))
    monkeypatch.setattr(systems, "untrained", zeros)


def test_systems(folder, tmp_path, quickly):
    """Models first, each with a name of its own; an untrained control of each shape."""
    same = write_random_model(tmp_path / "same shape", SMALL, seed=4)
    wide = write_random_model(tmp_path / "wide", ModelConfig(**vars(SMALL) | {"cell_dim": 13}))
    glove = vectors_file(tmp_path)
    several = systems_of([str(folder), str(same)], ["untrained", f"vectors:{glove}"])
    assert [system.name for system in several] == [folder.name, "same shape", "untrained", "glove.3d"]
    assert several[2].elmo.model == SMALL
    several = systems_of([str(folder), str(wide)], ["untrained"])
    names = [folder.name, "wide", f"untrained {folder.name}", "untrained wide"]
    assert [system.name for system in several] == names
    assert [system.elmo.model.cell_dim for system in several] == [11, 13, 11, 13]
    (tmp_path / "deep").mkdir()
    other = write_random_model(tmp_path / "deep" / folder.name, SMALL, seed=5)
    assert [system.name for system in systems_of([str(folder), str(other)])] == [str(folder), str(other)]
    assert systems_of([], [f"vectors:{glove}"])[0].name == "glove.3d"


def test_untrained_of_models_of_words(tmp_path, quickly):
    """Their vocabularies are part of what such models are."""
    model, models = ModelConfig(**vars(SMALL) | {"input": "words"}), []
    for number, words in enumerate((["a"], ["b"])):
        folder = tmp_path / f"words{number}"
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(["<S>", "</S>", "<UNK>", *words]))
        (folder / "options.json").write_text(json.dumps(to_options(model)))
        write_arrays(folder / "weights.hdf5", random_weights(model, 4))
        models.append(ElmoSystem(folder.name, elmo_jax.load(folder)))
    controls = parse_system("untrained", models)
    assert [control.name for control in controls] == ["untrained words0", "untrained words1"]
    assert [control.elmo.vocabulary.words[-1] for control in controls] == ["a", "b"]
    assert len(parse_system("untrained", models[:1])) == 1


@pytest.mark.parametrize(
    ("models", "baselines", "message"),
    [
        ([], ["untrained"], "untrained is a control of the models"),
        ([], ["glove.txt"], "the baseline 'glove.txt' is not known; there are untrained, vectors:FILE"),
        ([], ["vectors:"], "the baseline 'vectors:' is not known"),
        ([], ["vectors:nowhere.txt"], "there is no file nowhere.txt"),
        (["{model}", "{model}"], [], "are the same; give each model or baseline once"),
        (
            ["{model}"],
            ["vectors:{glove}", "vectors:{other}/glove.3d.vec"],
            "two models or baselines are called glove.3d",
        ),
        (["nowhere"], [], "nowhere"),
    ],
)
def test_bad_systems(folder, tmp_path, models, baselines, message):
    (tmp_path / "other").mkdir()
    vectors_file(tmp_path / "other", "the 1\n", "glove.3d.vec")
    places = {"model": folder, "glove": vectors_file(tmp_path), "other": tmp_path / "other"}
    with pytest.raises(InputError, match=message):
        systems_of([spec.format(**places) for spec in models], [spec.format(**places) for spec in baselines])


# Tiny models with random parameters: what they know is nothing, but they are read as any.
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "the", "cat", "sat", "on", "mat", "un", "##der", "##neath", "a", "rain", "##ed"]
SHAPE = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXTS = [
    ["the", "cat", "sat", "underneath", "a", "mat"],
    [],
    ["rained"],
    ["on", "\u200d\u0000", "under", "the", "mat"],
    ["the", "underneath", "cat", "rained", "on", "the", "underneath", "mat", "underneath", "cat", "sat"],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of tiny models of 16 positions, by kind."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    letters = {"vocab": {token: n for n, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}, "merges": []}
    pieces = {"vocab": {piece: number for number, piece in enumerate(PIECES)}}
    gpt = {"n_embd": 12, "n_layer": 3, "n_head": 2, "n_positions": 16}
    kinds = {
        "bert": (
            transformers.BertTokenizerFast,
            pieces,
            transformers.BertConfig,
            SHAPE | {"intermediate_size": 20},
            16,
        ),
        "gpt": (transformers.GPT2TokenizerFast, letters, transformers.GPT2Config, gpt, None),
        "roberta": (transformers.RobertaTokenizerFast, letters, transformers.RobertaConfig, SHAPE, 18),
        "t5": (transformers.BertTokenizerFast, pieces, transformers.T5Config, {"d_model": 12, "num_layers": 1}, None),
    }
    folders = {}
    for kind, (tokenizer, words, configuration, shape, positions) in kinds.items():
        folders[kind] = folder = tmp_path_factory.mktemp("tiny") / kind
        tokenizer(**words).save_pretrained(folder)
        options = (
            shape | {"vocab_size": len(words["vocab"])} | ({"max_position_embeddings": positions} if positions else {})
        )
        torch.manual_seed(1)
        transformers.AutoModel.from_config(configuration(**options)).save_pretrained(folder)
    return folders


def hidden_states(system, pieces):
    """Of pieces of one part, [L, T, D], computed by themselves."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        states = system.model(input_ids=torch.tensor([pieces]), output_hidden_states=True).hidden_states
    return torch.cat(states).numpy()


def test_bert(made):
    """A word has the mean of its pieces, wherever its sentence is in a batch; one without pieces has zeros."""
    system = systems_of([], [f"hf:{made['bert']}"])[0]
    assert (system.name, system.layers) == ("bert", ("embeddings", "layer 1", "layer 2", "layer 3"))
    vectors = system.embed(TEXTS)
    assert vectors.values.shape == (sum(map(len, TEXTS)), 4, 12)
    numbers = system.tokenizer.convert_tokens_to_ids(
        ["[CLS]", "the", "cat", "sat", "un", "##der", "##neath", "a", "mat", "[SEP]"]
    )
    states = hidden_states(system, numbers)
    expected = np.stack([*states.swapaxes(0, 1)[1:4], states[:, 4:7].mean(1), *states.swapaxes(0, 1)[7:9]])
    assert relative_error(vectors.of(0), expected) < 1e-5
    assert not vectors.of(3)[1].any()
    assert all(vector.any() for number, vector in enumerate(vectors.of(3)) if number != 1)
    assert relative_error(system.embed(TEXTS[3:4]).values, vectors.of(3)) < 1e-5


def test_long_sentences(made):
    """What the model cannot take at once is read in parts of whole words: 14 pieces beside [CLS] and [SEP]."""
    system = Transformers(str(made["bert"]))
    long = TEXTS[4]
    assert [(part.begin, len(part.pieces)) for part in system._parts(0, long)] == [(0, 2 + 13), (8, 2 + 5)]
    vectors = system.embed([TEXTS[0], long])
    first = system.embed([long[:8]]).values
    assert relative_error(vectors.of(1)[:8], first) < 1e-5
    assert vectors.of(1).any((1, 2)).all()


@pytest.mark.parametrize(("kind", "most"), [("gpt", 16), ("roberta", 16)])
def test_bytes(made, kind, most):
    """Tokenizers of bytes mark where a word begins; RoBERTa numbers positions from behind that of padding."""
    system = Transformers(str(made[kind]))
    special = 0 if kind == "gpt" else 2
    assert (system.most, system.tokenizer.num_special_tokens_to_add()) == (most, special)
    sentence = ["cat", "on", "antidisestablishmentarianism", "a"]
    parts = list(system._parts(5, sentence))
    assert [part.begin for part in parts] == [5, 7, 8]
    assert parts[0].words[parts[0].words >= 0].tolist() == [0] * 4 + [1] * 3
    assert len(parts[1].pieces) == most
    vectors = system.embed([["a"], sentence, []])
    states = hidden_states(system, parts[0].pieces)[:, parts[0].words >= 0]
    assert relative_error(vectors.of(1)[:2], np.stack([states[:, :4].mean(1), states[:, 4:].mean(1)])) < 1e-5
    assert vectors.values.any((1, 2)).all()


def test_identity_of_transformers(made, tmp_path):
    """It is the parameters' and the tokenizer's, wherever the folder lies."""
    transformers = pytest.importorskip("transformers")
    one = Transformers(str(made["bert"]))
    shutil.copytree(made["bert"], tmp_path / "copy")
    assert Transformers(str(tmp_path / "copy")).identity == one.identity
    transformers.BertTokenizerFast(vocab={piece: n for n, piece in enumerate(reversed(PIECES))}).save_pretrained(
        tmp_path / "copy"
    )
    assert Transformers(str(tmp_path / "copy")).identity != one.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [("t5", "t5 reads and writes"), ("nothing", "cannot load .*nothing with transformers")],
)
def test_bad_transformers(made, tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        Transformers(str(made.get(name, tmp_path / name)))


def test_transformers_that_are_not_there(monkeypatch):
    """The error says which extra brings them."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="the extra transformers brings"):
        systems_of([], ["hf:bert-base-cased"])
