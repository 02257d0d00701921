import numpy as np
import pytest
from conftest import relative_error

from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Alphabet, Vocabulary, character_ids

PAD = 260

MARKED = Alphabet.of(["a"]).characters


@pytest.mark.parametrize(
    ("word", "spelling"),
    [
        ("cat", [258, 99, 97, 116, 259]),
        ("é", [258, 0xC3, 0xA9, 259]),
        ("", [258, 259]),
        ("<S>", [258, 256, 259]),
        ("</S>", [258, 257, 259]),
        ("<UNK>", [258, 60, 85, 78, 75, 62, 259]),  # spelled, as in bilm-tf
        ("abcdefghij", [258, *b"abcdefgh", 259]),  # 8 bytes fit between begin and end of word
        ("aaaaaaaé", [258, *b"aaaaaaa", 0xC3, 259]),  # cut inside a character
    ],
)
def test_spelling(word, spelling):
    ids = character_ids([word], 10)
    assert ids[0].tolist() == spelling + [PAD] * (10 - len(spelling))


def test_vocabulary_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"<S>\n</S>\r\n<UNK>\n  the \n!!!MAXTERMID\ncat\nthe\n")
    vocabulary = Vocabulary.load(path)
    assert vocabulary.words == ["<S>", "</S>", "<UNK>", "the", "cat", "the"]
    assert vocabulary.ids(["the", "cat", "dog", "</S>"]).tolist() == [5, 4, 2, 1]  # the later of two counts
    vocabulary.save(path)
    assert Vocabulary.load(path).words == vocabulary.words


def test_a_byte_order_mark_is_read_as_nothing(tmp_path):
    (tmp_path / "vocab.txt").write_text("<S>\n</S>\n<UNK>\nthe", encoding="utf-8-sig")
    assert Vocabulary.load(tmp_path / "vocab.txt").words == ["<S>", "</S>", "<UNK>", "the"]
    (tmp_path / "vocab.txt").write_text("<S>\n</S>\n<UNK>\nthe", encoding="utf-16")
    with pytest.raises(InputError, match="is not UTF-8"):
        Vocabulary.load(tmp_path / "vocab.txt")


def test_damaged_vocabularies(tmp_path):
    """Each is one clear error, or has the words that its lines say."""
    path = tmp_path / "vocab.txt"
    whole = "<S>\n</S>\n<UNK>\nthe\nüber\n猫\ncat\n".encode()
    refused = 0
    for seed in range(600):
        generator = np.random.default_rng(seed)
        data = bytearray(whole)
        place = int(generator.integers(len(data)))
        if seed % 3 == 0:
            del data[place : place + int(generator.integers(1, 20))]
        else:
            data[place] = generator.integers(256) if seed % 3 == 1 else ord("\n")
        path.write_bytes(data)
        try:
            words = [line.strip() for line in data.decode().removesuffix("\n").split("\n")]
            right = words if {"<S>", "</S>", "<UNK>"} <= set(words) else None
        except UnicodeDecodeError:
            right = None
        if right is None:
            refused += 1
            with pytest.raises(InputError, match=r"vocab.txt (is not UTF-8|\(\d+ words\) lacks )") as error:
                Vocabulary.load(path)
            assert len(str(error.value)) < 400
        else:
            assert Vocabulary.load(path).words == right
    assert 200 < refused < 500
    with pytest.raises(InputError, match="cannot read the vocabulary file"):
        Vocabulary.load(tmp_path)


def test_missing_special_words():
    with pytest.raises(InputError, match="lacks <S> <UNK>"):
        Vocabulary(["</S>", "the"])


def test_from_counts():
    counts = list({"b": 3, "a": 3, "c": 5, "d": 1, "<UNK>": 9}.items())
    assert Vocabulary.from_counts(counts).words == ["<S>", "</S>", "<UNK>", "c", "a", "b", "d"]
    assert Vocabulary.from_counts(counts, min_count=2).words[3:] == ["c", "a", "b"]
    assert Vocabulary.from_counts(counts, max_size=4).words == ["<S>", "</S>", "<UNK>", "c"]


def test_characters_of_the_published_vocabulary(golden):
    """The published token embeddings are of the vocabulary's words in order: spelling and char CNN must agree."""
    import h5py

    import elmo_jax

    folder = golden / "allennlp_fixture"
    words = Vocabulary.load(folder / "vocab_test.txt").words
    elmo = elmo_jax.load(options=folder / "options.json", weights=folder / "lm_weights.hdf5")
    vectors = np.concatenate(elmo.embed([[word] for word in words], layers="all"), 1)[0]
    with h5py.File(folder / "elmo_token_embeddings.hdf5") as file:
        published = file["embedding"][()]
    assert relative_error(vectors[:, : elmo.dim // 2], published[: len(words)]) < 1e-5


def test_an_alphabet_comes_back(tmp_path):
    """Characters of every kind, some of which a line or an editor would change or lose; words spelled in them."""
    letters = [*"a U+#<猫\u0301é🐈", " ", "\n", "\r", "\t", "\0", "\u3000", "\ufeff", "\u2028", "\ud800"]
    letters += map(chr, range(0x5000, 0x5100))
    alphabet = Alphabet.of([*dict.fromkeys(letters)])
    (tmp_path / "characters.txt").write_bytes(alphabet.to_bytes())
    assert alphabet.to_bytes().count(b"\n") == len(alphabet)
    assert b"\nU+3000\n" in alphabet.to_bytes()
    read = Alphabet.load(tmp_path / "characters.txt")
    assert (read.characters, read.index, read.unknown) == (alphabet.characters, alphabet.index, 0)
    found = character_ids(["a猫", "\u3000b", "", "<S>", "</S>", "aaaaaaaa"], 6, read)
    a, cat, space = (letters.index(letter) + 1 for letter in "a猫\u3000")
    expected = [
        [258, a, cat, 259, 260, 260],
        [258, space - 1, 0, 259, 260, 260],
        [258, 259, 260, 260, 260, 260],
        [258, 256, 259, 260, 260, 260],
        [258, 257, 259, 260, 260, 260],
        [258, a, a, a, a, 259],
    ]
    assert found.tolist() == expected
    last = read.index["\u50ff"]
    assert last > 261
    assert character_ids(["\u50ff"], 3, read).tolist() == [[258, last, 259]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["<UNK>", "a"],
            r"\(2 lines\) is no alphabet: of one, lines 257 to 261 are the marks <S> </S> <BOW> <EOW> <PAD>",
        ),
        (["b", *MARKED[1:]], r"is no alphabet: of one, .* another one is <UNK>"),
        ([*MARKED, "b", "b"], "line 263 of .*characters.txt is 'b', which is there before"),
        ([*MARKED, "U+0061"], "line 262 of .*characters.txt is 'a', which is there before"),
        ([*MARKED, "<S>"], "line 262 of .*characters.txt is '<S>', which is there before"),
        ([*MARKED, "ab"], "line 262 of .*characters.txt is 'ab', which is no character"),
        ([*MARKED, "U+110000"], "is 'U\\+110000', which is no character; one can be written as U\\+ its number"),
    ],
)
def test_files_that_are_no_alphabet(tmp_path, lines, message):
    (tmp_path / "characters.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Alphabet.load(tmp_path / "characters.txt")
