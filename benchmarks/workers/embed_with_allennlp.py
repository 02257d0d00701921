"""Worker: AllenNLP 2.10.1 at its best. Arguments: model folder, text, precision (float32)."""

import sys

import allennlp.version
import numpy as np
import torch
from allennlp.modules.elmo import _ElmoBiLm, batch_to_ids
from serve import peak_memory, sentences_of, serve_batches

folder, text, _ = sys.argv[1:]
sentences = sentences_of(text)
device = "cuda" if torch.cuda.is_available() else "cpu"
elmo = _ElmoBiLm(folder + "/options.json", folder + "/weights.hdf5").eval().to(device)
BATCH = 64


@torch.no_grad()
def embed(some):
    """Average of the layers [B, T, 2P] of sentences, state zero before them; boundaries are taken away."""
    elmo._elmo_lstm.reset_states()
    found = elmo(batch_to_ids(some).to(device))
    average = torch.stack(found["activations"]).mean(0).cpu()
    return [vectors[1 : len(sentence) + 1] for vectors, sentence in zip(average, some)]  # noqa: B905 (Python 3.9)


def save(path, vectors):
    np.save(path, torch.cat(vectors).numpy())


def memory():
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()


def about():
    return {"allennlp": allennlp.version.VERSION, "torch": torch.__version__}


serve_batches(embed, sentences, BATCH, save, memory, about)
