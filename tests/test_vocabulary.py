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
