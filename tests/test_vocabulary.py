import numpy as np
import pytest
from conftest import relative_error

from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary, character_ids

PAD = 260


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
