"""Worker: what PyTorch could do at its best. Arguments: model folder, text, precision.

`nn.LSTM` with projection (cuDNN on a GPU), the char CNN once per distinct word of a batch, sentences sorted by
length. nn.LSTM clips nothing, so the vectors differ where the model clips: a bound of speed, not a port.
"""

import json
import sys

import h5py
import numpy as np
import torch
from serve import peak_memory, sentences_of, serve_batches
from torch import nn

folder, text, precision = sys.argv[1:]
sentences = sentences_of(text)
device = "cuda" if torch.cuda.is_available() else "cpu"
with open(folder + "/options.json") as file:
    options = json.load(file)
BATCH = 256


class BiLM(nn.Module):
    def __init__(self, weights):
        super().__init__()
        cnn, lstm = options["char_cnn"], options["lstm"]
        size, projection = lstm["dim"], lstm["projection_dim"]
        array = lambda name: torch.from_numpy(weights[name][()])
        rest = cnn["n_characters"] - len(weights["char_embed"])  # the mask, which the file leaves out
        characters = torch.cat([torch.zeros(rest, cnn["embedding"]["dim"]), array("char_embed")])
        self.characters = nn.Embedding.from_pretrained(characters)
        self.convolutions = nn.ModuleList()
        for number, (width, filters) in enumerate(cnn["filters"]):
            convolution = nn.Conv1d(cnn["embedding"]["dim"], filters, width)
            convolution.weight.data = array(f"CNN/W_cnn_{number}")[0].permute(2, 1, 0).contiguous()
            convolution.bias.data = array(f"CNN/b_cnn_{number}")
            self.convolutions.append(convolution)
        linear = lambda weight, bias: self._linear(array(weight), array(bias))
        self.highways = nn.ModuleList()
        for number in range(cnn["n_highway"]):
            name = f"CNN_high_{number}"
            layers = [linear(f"{name}/W_{part}", f"{name}/b_{part}") for part in ("transform", "carry")]
            self.highways.append(nn.ModuleList(layers))
        self.projection = linear("CNN_proj/W_proj", "CNN_proj/b_proj")
        self.lstms = nn.ModuleList()
        for direction in (0, 1):
            for layer in (0, 1):
                prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
                kernel, bias = array(f"{prefix}/W_0"), array(f"{prefix}/B")
                i, j, f, o = (slice(gate * size, (gate + 1) * size) for gate in range(4))
                gates = lambda x: torch.cat([x[i], x[f], x[j], x[o]])  # noqa: B023
                module = nn.LSTM(projection, size, proj_size=projection, batch_first=True)
                module.weight_ih_l0.data = gates(kernel[:projection].T).contiguous()
                module.weight_hh_l0.data = gates(kernel[projection:].T).contiguous()
                bias[f] += 1
                module.bias_ih_l0.data, module.bias_hh_l0.data = gates(bias), torch.zeros_like(bias)
                module.weight_hr_l0.data = array(f"{prefix}/W_P_0").T.contiguous()
                self.lstms.append(module)

    @staticmethod
    def _linear(weight, bias):
        module = nn.Linear(*weight.shape)
        module.weight.data, module.bias.data = weight.T.contiguous(), bias
        return module

    def words(self, ids):
        """Character ids [U, C] → word vectors [U, P]."""
        x = self.characters(ids).transpose(1, 2)
        activation = torch.relu if options["char_cnn"]["activation"] == "relu" else torch.tanh
        x = torch.cat([activation(convolution(x).amax(-1)) for convolution in self.convolutions], -1)
        for transform, carry in self.highways:
            gate = torch.sigmoid(carry(x))
            x = gate * torch.relu(transform(x)) + (1 - gate) * x
        return self.projection(x)

    def forward(self, ids, forward, backward):
        """Average of the layers of both directions, each in its reading order: [B, T, P] twice."""
        vectors = self.words(ids)
        halves = []
        for direction, numbers in enumerate((forward, backward)):
            first = vectors[numbers]
            second = self.lstms[2 * direction](first)[0]
            third = self.lstms[2 * direction + 1](second)[0]
            if options["lstm"]["use_skip_connections"]:
                third = third + second
            halves.append(((first + second + third) / 3).float())
        return halves


with h5py.File(folder + "/weights.hdf5") as weights:
    bilm = BiLM(weights).eval().to(device)


def spell(word):
    limit = options["char_cnn"]["max_characters_per_token"]
    ids = np.full(limit, 261)
    if word in ("<S>", "</S>"):
        spelling = [257 if word == "<S>" else 258]
    else:
        spelling = [byte + 1 for byte in word.encode("utf-8")[: limit - 2]]
    ids[: len(spelling) + 2] = [259, *spelling, 260]
    return ids


@torch.inference_mode()
def embed(some):
    """Average of the layers, float32 [T, 2P] for each sentence, state zero before it."""
    marked = [["<S>", *sentence, "</S>"] for sentence in some]
    distinct = {}
    longest = max(map(len, marked))
    forward, backward = np.zeros((2, len(some), longest), np.int64)
    for row, words in enumerate(marked):
        numbers = [distinct.setdefault(word, len(distinct)) for word in words]
        forward[row, : len(words)], backward[row, : len(words)] = numbers, numbers[::-1]
    arrays = (np.stack([spell(word) for word in distinct]), forward, backward)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        ahead, back = (half.cpu() for half in bilm(*(torch.from_numpy(array).to(device) for array in arrays)))
    return [
        torch.cat([ahead[row, 1 : len(words) - 1], back[row, 1 : len(words) - 1].flip(0)], -1)
        for row, words in enumerate(marked)
    ]


def save(path, vectors):
    np.save(path, torch.cat(vectors).numpy())


def memory():
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()


serve_batches(embed, sentences, BATCH, save, memory, lambda: {"torch": torch.__version__})
