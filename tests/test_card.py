"""Model cards: what a run knows of itself, and nothing that nobody said."""

import re

import jax
from conftest import SMALL
from etils import epath

from elmo_jax import Config, DataConfig, TrainConfig
from elmo_jax.card import card, write_card
from elmo_jax.modules import init_bilm
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.workdir import Begun

VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", "the", "old", "bank"])
LINES = [
    {"step": 4, "loss": 2.0},
    {"step": 4, "heldout_perplexity": 30.04, "heldout_perplexity_forward": 31.0, "heldout_perplexity_backward": 29.0},
    {"step": 8, "heldout_perplexity": 20.0, "heldout_perplexity_forward": 20.0, "heldout_perplexity_backward": 20.0},
]


def made(data: DataConfig, *about: str | None, step: int = 4) -> str:
    config = Config(SMALL, data, TrainConfig(batch_size=3, window=5))
    begun = Begun(config, 6, {"sentences": 1234}, VOCABULARY)
    return card(begun, VOCABULARY, step, LINES, *(about or (None, None, None)))


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", text, re.MULTILINE))


def test_a_card_tells_what_the_run_knows():
    text = made(
        DataConfig(train=("/home/me/a.txt", "b-*.txt"), heldout=("/home/me/c.txt",)), "cc-by-4.0", "en", "| a |"
    )
    assert text.startswith('---\nlicense: "cc-by-4.0"\nlanguage: "en"\nlibrary_name: "elmo-jax"\n')
    told = rows(text)
    assert told["training text"] == "`a.txt`, `b-*.txt`, 1,234 sentences"
    assert told["held-out text"] == "`c.txt`"
    assert told["language"] == "en"
    assert told["steps"] == "4 of 6 rows of 5 tokens: 120 tokens read"
    parameters = sum(array.size for array in jax.tree.leaves(init_bilm(jax.random.key(0), SMALL, len(VOCABULARY))))
    assert told["parameters"].startswith(f"{parameters:,} in the biLM, {6 * (SMALL.projection_dim + 1)} in the softmax")
    assert "Held-out perplexity: 30.0 (forward 31.0, backward 29.0)." in text
    assert "\n\n| a |\n" in text
    assert "/home/me" not in text


def test_what_nobody_said_is_not_stated():
    text = made(DataConfig(train=("builtin",)), step=5)
    assert text.startswith('---\nlibrary_name: "elmo-jax"\n')
    told = rows(text)
    assert told["language"].startswith("not stated")
    assert told["training text"].startswith("the English text that every Python carries, 1,234")
    assert told["held-out text"] == "a tenth of it, which is not trained on"
    assert rows(made(DataConfig(train=("a.txt",))))["held-out text"] == "none"
    assert "Held-out perplexity: not measured at this step." in text
    assert "Not measured on tasks" in text
    assert "not stated: whoever publishes the model says under which licence" in text


def test_a_card_that_is_there_stays(tmp_path):
    folder = epath.Path(tmp_path)
    assert write_card(folder, "one")
    assert not write_card(folder, "another")
    assert (tmp_path / "README.md").read_text() == "one"
