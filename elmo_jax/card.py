"""Model cards (Mitchell et al. 2019): what a model was trained on and how, what it reaches, what it is not for."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from elmo_jax.corpus import BUILTIN
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import weight_shapes
from elmo_jax.workdir import Begun

# In the model's folder, where the Hugging Face Hub looks for it.
CARD = "README.md"


def measured(lines: Sequence[dict[str, Any]], step: int) -> str:
    """The held-out perplexity at a step, from the lines of metrics.jsonl."""
    name = "heldout_perplexity"
    found = [line for line in lines if line["step"] == step and isinstance(line.get(name), float)]
    if not found:
        return "not measured at this step"
    line = found[-1]
    each = ", ".join(f"{side} {line[f'{name}_{side}']:,.1f}" for side in ("forward", "backward"))
    return f"{line[name]:,.1f} ({each})"


def names(files: Sequence[str]) -> str:
    """Of texts, without the folders that they lay in."""
    told = lambda file: (
        "the English text that every Python carries" if file == BUILTIN else f"`{file.rpartition('/')[2]}`"
    )
    return ", ".join(map(told, files)) or "none"


def card(
    begun: Begun,
    vocabulary: Vocabulary,
    step: int,
    lines: Sequence[dict[str, Any]],
    licence: str | None,
    language: str | None,
    figures: str | None,
) -> str:
    """The Markdown of a run's model at a step; `figures` is a table of what it reaches on tasks."""
    config, model, train = begun.config, begun.config.model, begun.config.train
    arrays = weight_shapes(model, len(vocabulary)).values()
    size = sum(math.prod(shape) for shape in arrays)
    head = {"license": licence, "language": language, "library_name": "elmo-jax"}
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in head.items() if value)
    told = lambda value, what: value or f"not stated: whoever publishes the model says {what}"
    recipe = f"{train.optimizer}, learning rate {train.learning_rate:g}, schedule {train.schedule}"
    read = step * begun.rows * train.window
    sentences = begun.text.get("sentences")
    held_out = names(config.data.heldout)
    if config.data.train == (BUILTIN,) and not config.data.heldout:
        held_out = "a tenth of it, which is not trained on"
    if figures:
        figures = (
            "By `elmo-jax evaluate`; systems other than this model are what it is compared with, data are called by "
            f"the names of their files.\n\n{figures}"
        )
    return f"""---
{front}tags: ["elmo", "jax"]
---

# ELMo, {model.layers} layers, vectors of {2 * model.projection_dim}

A bidirectional language model (Peters et al. 2018, "Deep contextualized word representations"): vectors of words in
their sentences. `elmo_jax.load(FOLDER)` loads it; bilm-tf and AllenNLP read the same files.

## Data

| | |
|---|---|
| language | {told(language, "which")} |
| training text | {names(config.data.train)}{f", {sentences:,} sentences" if sentences else ""} |
| held-out text | {held_out} |
| vocabulary | {len(vocabulary):,} words, of the softmax alone where words are read by their characters |

## Size and training

| | |
|---|---|
| parameters | {size:,} in the biLM, {len(vocabulary) * (model.projection_dim + 1):,} in the softmax |
| cells, projection | {model.cell_dim:,}, {model.projection_dim:,} |
| steps | {step:,} of {begun.rows:,} rows of {train.window} tokens: {read:,} tokens read |
| recipe | {recipe}; dropout {train.dropout:g}, seed {train.seed} |

## Figures

Held-out perplexity: {measured(lines, step)}. Compare perplexities only on the same text with the same vocabulary.

{figures or "Not measured on tasks; `elmo-jax evaluate` does that."}

## Limits

- It has read the text named above and nothing else: of other languages and kinds of text it knows little.
- It repeats what that text says of people; `elmo-jax evaluate bias=FILE` measures some of that.
- A word is read up to its first {model.max_characters - 2} bytes, a sentence by itself.
- Its vectors describe words; it is no source of facts and writes no text.

## Licence

{told(licence, "under which licence, and whether that of the text allows it")}
"""


def write_card(folder: epath.Path, text: str) -> bool:
    """Writes the card beside a model; one that is there stays, for people write into them. Whether it was written."""
    path = folder / CARD
    if path.exists():
        return False
    path.write_text(text, encoding="utf-8")
    return True
