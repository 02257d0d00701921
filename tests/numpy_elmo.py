"""ELMo in plain NumPy, float64, a sentence and a position at a time: slow and obvious, shares no code with elmo_jax."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spell(word, max_characters):
    """Character ids of a word: begin of word, UTF-8 bytes, end of word, padding."""
    if word == "<S>":
        inside = [256]
    elif word == "</S>":
        inside = [257]
    else:
        inside = list(word.encode("utf-8"))[: max_characters - 2]
    ids = [258, *inside, 259]
    return ids + [260] * (max_characters - len(ids))


def word_vector(word, weights, options):
    cnn = options["char_cnn"]
    characters = [weights["char_embed"][c] for c in spell(word, cnn["max_characters_per_token"])]
    features = []
    for i, (width, _) in enumerate(cnn["filters"]):
        kernel, bias = weights[f"CNN/W_cnn_{i}"][0], weights[f"CNN/b_cnn_{i}"]
        scores = [
            sum(characters[at + k] @ kernel[k] for k in range(width)) + bias
            for at in range(len(characters) - width + 1)
        ]
        largest = np.max(scores, axis=0)
        features.append(np.maximum(largest, 0) if cnn["activation"] == "relu" else np.tanh(largest))
    x = np.concatenate(features)
    for i in range(cnn["n_highway"]):
        name = f"CNN_high_{i}"
        carry = sigmoid(x @ weights[f"{name}/W_carry"] + weights[f"{name}/b_carry"])
        transform = np.maximum(x @ weights[f"{name}/W_transform"] + weights[f"{name}/b_transform"], 0)
        x = carry * transform + (1 - carry) * x
    if "CNN_proj/W_proj" in weights:
        x = x @ weights["CNN_proj/W_proj"] + weights["CNN_proj/b_proj"]
    return x


def lstm_layer(inputs, cell, hidden, weights, prefix, options):
    outputs = []
    for x in inputs:
        z = np.concatenate([x, hidden]) @ weights[f"{prefix}/W_0"] + weights[f"{prefix}/B"]
        i, j, f, o = np.split(z, 4)
        cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(j)
        if options["cell_clip"]:
            cell = np.clip(cell, -options["cell_clip"], options["cell_clip"])
        hidden = sigmoid(o) * np.tanh(cell)
        if f"{prefix}/W_P_0" in weights:
            hidden = hidden @ weights[f"{prefix}/W_P_0"]
            if options["proj_clip"]:
                hidden = np.clip(hidden, -options["proj_clip"], options["proj_clip"])
        outputs.append(hidden)
    return outputs


def embed(sentence, weights, options):
    """All layers [L + 1, T + 2, 2P] of one sentence with its boundaries, state zero before it."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    lstm = options["lstm"]
    words = ["<S>", *sentence, "</S>"]
    if "char_cnn" in options:
        spelled = {word: word_vector(word, weights, options) for word in set(words)}
        vectors = [spelled[word] for word in words]
    else:
        vectors = [weights["embedding"][options["vocabulary"].index(word)] for word in words]
    halves = []
    for direction in (0, 1):
        x = vectors if direction == 0 else vectors[::-1]
        layers = [x]
        for layer in range(lstm["n_layers"]):
            prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            cell, hidden = np.zeros(lstm["dim"]), np.zeros(lstm["projection_dim"])
            outputs = lstm_layer(x, cell, hidden, weights, prefix, lstm)
            if lstm["use_skip_connections"] and layer > 0:
                outputs = [output + below for output, below in zip(outputs, x, strict=True)]
            layers.append(outputs)
            x = outputs
        halves.append([layer if direction == 0 else layer[::-1] for layer in layers])
    return np.concatenate([np.array(halves[0]), np.array(halves[1])], -1)
