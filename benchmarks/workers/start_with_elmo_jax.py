"""How a run starts: reads its text, lays out the first batch of one host, and says what that took, as JSON.

CONFIG VOCABULARY CACHE HOSTS DEVICES_PER_HOST TEXT..
"""

import json
import re
import sys
import time
from pathlib import Path

from elmo_jax import training
from elmo_jax.config import DataConfig, load_config
from elmo_jax.corpus import read_corpora
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary


def private_bytes() -> int:
    """Memory that is this process' own: not the pages of mapped files, which the system takes back when it likes."""
    return 1024 * int(re.search(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[1])


name, vocabulary_file, cache, hosts, devices, *text = sys.argv[1:]
config = load_config(name)
rows = config.train.batch_size * int(hosts) * int(devices)
seconds, before = {}, private_bytes()


def timed(part, function):
    begun = time.perf_counter()
    result = function()
    seconds[part] = time.perf_counter() - begun
    return result


vocabulary = timed("vocabulary", lambda: Vocabulary.load(Path(vocabulary_file)))
data = DataConfig(train=tuple(text), cache=cache)
corpus, _ = timed("text", lambda: read_corpora(data, vocabulary))
encode = word_encoder(corpus, config.model)
own = range(config.train.batch_size * int(devices))
stream = LanguageModelStream(
    corpus, rows, config.train.window, encode, devices=int(devices), own=own, shuffle=True, seed=config.train.seed
)
timed("first batch", lambda: next(stream))
timed("first negatives", lambda: training.draw_negatives(config, len(vocabulary), 1))
print(json.dumps({"seconds": seconds, "bytes": private_bytes() - before, "tokens": corpus.tokens}))
