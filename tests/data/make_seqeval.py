"""Makes tests/data/seqeval.json: tags at random, right and predicted, and what seqeval 1.2.2 says of them.

It needs an environment of its own: `pip install seqeval==1.2.2`; then, in the root of the project,
`python tests/data/make_seqeval.py`. Predictions are the right tags with a third of them drawn anew, so that many follow
no scheme.

- of each scheme: gold and predicted tags of sentences, F1, precision, recall
"""

import json
import random
from pathlib import Path

from seqeval.metrics import f1_score, precision_score, recall_score

TYPES = ("PER", "LOC", "B-geo")
LETTERS = {"IOB2": "BI", "IOB1": "IB", "BIOES": "BIES"}
METRICS = {"F1": f1_score, "precision": precision_score, "recall": recall_score}


def gold_tags(scheme, length):
    """Spans of one to four tokens, and tokens outside."""
    tags, last = [], None
    while len(tags) < length:
        if random.random() < 0.4:
            tags, last = [*tags, "O"], None
            continue
        kind, size = random.choice(TYPES), random.randint(1, 4)
        inside = ["I"] * size
        if scheme == "IOB2" or (scheme == "IOB1" and kind == last):
            inside[0] = "B"
        elif scheme == "BIOES":
            inside = ["S"] if size == 1 else ["B", *"I" * (size - 2), "E"]
        tags, last = [*tags, *(f"{letter}-{kind}" for letter in inside)], kind
    return tags


def main():
    random.seed(0)
    values = {}
    for scheme, letters in LETTERS.items():
        every = ["O", *(f"{letter}-{kind}" for letter in letters for kind in TYPES)]
        gold = [gold_tags(scheme, random.randint(1, 9)) for _ in range(30)]
        predicted = [[random.choice(every) if random.random() < 0.3 else tag for tag in tags] for tags in gold]
        scores = {name: metric(gold, predicted) for name, metric in METRICS.items()}
        values[scheme] = {"gold": gold, "predicted": predicted} | scores
    Path(__file__).with_name("seqeval.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
