"""Worker: compiles a program of this project for a machine that is not there. Argument: JSON of `benchmarks.compiled`.

Writes the compiled text to the file `text` and, to `answer`, what else is known of it or {"error": ..} as JSON.
"""

import json
import platform
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from jax.experimental import topologies

from elmo_jax import training
from elmo_jax.config import load_config
from elmo_jax.engine import WINDOW, Fixed, embedding_program
from elmo_jax.model import parameter_shapes, prepared_layers, zero_state
from elmo_jax.products import Form, compiled_for, form
from elmo_jax.softmax_table import table_size
from elmo_jax.streams import Batch, Window
from elmo_jax.word_vectors import REMEMBERED_WORDS, spelling_program

# The packages of compilers, one in each environment.
COMPILERS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
# XLA's description of a GPU (GpuTargetConfigProto): the maker's figures of an H200 SXM.
GPUS = {
    "h200": """
        platform_name: "CUDA"
        device_description_str: "NVIDIA H200"
        dnn_version_info { major: 9 minor: 8 patch: 0 }
        gpu_device_info {
            cuda_compute_capability { major: 9 minor: 0 }
            core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
            memory_bandwidth: 4800000000000 device_memory_size: 150000000000 l2_cache_size: 52428800
            threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
            shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
            registers_per_block_limit: 65536 registers_per_core_limit: 65536
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        }
    """
}


def shapes(tree, *before: int):
    """Shapes and types of arrays alone, with more axes `before`."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct((*before, *array.shape), array.dtype), tree)


def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def parameters(model):
    """Those without the softmax."""
    of_each = parameter_shapes(model).items()
    return {name: {leaf: array(np.float32, *shape) for leaf, shape in of.items()} for name, of in of_each}


def training_step(config, devices, vocabulary_size: int, words: int):
    """The training step as `pretraining` calls it: with room for all words that a window may have, or for these."""
    model, train, n = config.model, config.train, len(devices)
    part = table_size(vocabulary_size, n * train.batch_size) // n
    softmax = {"weight": array(np.float32, n, part, model.projection_dim), "bias": array(np.float32, n, part)}
    state = jax.eval_shape(training.init_state, {"bilm": parameters(model), "softmax": softmax})
    of_rows = (n, train.batch_size, train.window)
    room = array(np.uint16, n, 2 * train.batch_size * train.window, model.max_characters)
    if form_for(devices).chunk is None:
        room = shapes(training.trimmed(Batch(np.empty(room.shape, room.dtype), np.full(n, words), *[None] * 5)).words)
    batch = Batch(
        room,
        array(np.int32, n),
        array(np.int32, *of_rows),
        array(np.int32, *of_rows),
        array(bool, *of_rows),
        array(np.int32, n, 2, *of_rows[1:]),
        array(bool, *of_rows),
    )
    negatives = training.Negatives(array(np.int32, 2, train.negatives), array(np.int32, 2), array(np.int32))
    row_ids = array(np.int32, n, train.batch_size)
    lstm_state = shapes(zero_state(model, train.batch_size), n)
    return training.step_on_devices(config, devices=devices).lower(state, lstm_state, batch, row_ids, negatives)


def table_of_words(model, devices, rows: int) -> jax.ShapeDtypeStruct:
    """The vectors that the engine remembers."""
    return array(np.float32, max(REMEMBERED_WORDS, 2 * len(devices) * rows * WINDOW), model.projection_dim)


def embedding(model, precision, devices, rows: int):
    """A window of the embedding engine, which returns the average of the layers."""
    n = len(devices)
    with compiled_for(devices[0].platform):
        layers = jax.eval_shape(lambda of: prepared_layers(model, of, precision), parameters(model))
    fixed = Fixed(layers, shapes(zero_state(model)), array(np.float32, model.layers + 1))
    numbers = array(np.int32, n, rows, WINDOW)
    window = Window(array(np.int32, n, rows), numbers, numbers, array(bool, n, rows, WINDOW), None)
    state = shapes(zero_state(model, rows), n)
    program = embedding_program(model, precision, tuple(devices))
    return program.lower(fixed, table_of_words(model, devices, rows), state, window)


def new_words(model, precision, devices, rows: int):
    """The char CNN for some of the new words of an embedding window, among them one of the longest."""
    n, words = len(devices), form_for(devices).new_words
    places, characters = array(np.int32, n * words), array(np.uint16, n, words, model.max_characters)
    arguments = parameters(model)["words"], table_of_words(model, devices, rows), places, characters
    return spelling_program(model, tuple(devices)).lower(*arguments)


def devices_of(machine: str) -> list[jax.Device]:
    """Devices that programs can be compiled for, and not run on: a key of GPUS, or a topology of TPUs."""
    if machine in GPUS:
        topology = {"topology_name": "1x1x1", "topology": "1x1x1", "target_config": GPUS[machine]}
        return topologies.get_topology_desc(platform="cuda", **topology).devices
    return topologies.get_topology_desc(platform="tpu", topology_name=machine).devices


def lower(asked, config, devices):
    if asked["program"] == "training step":
        return training_step(config, devices, asked["vocabulary_size"], asked["words"])
    program = {"embedding": embedding, "new words": new_words}[asked["program"]]
    return program(config.model, config.train.precision, devices, config.train.batch_size)


def form_for(devices) -> Form:
    with compiled_for(devices[0].platform):
        return form()


def run(asked) -> dict:
    try:
        devices = devices_of(asked["machine"])
        config, rows = load_config(asked["config"]), asked["rows"] or form_for(devices).rows[-1]
        config = replace(config, train=replace(config.train, precision=asked["precision"], batch_size=rows))
        lowered = lower(asked, config, devices)
        begin = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - begin
    except jax.errors.JaxRuntimeError as error:  # there is no such topology, or the program needs too much memory
        return {"error": str(error)}
    memory = compiled.memory_analysis()
    Path(asked["text"]).write_text(compiled.as_text(), encoding="utf-8")
    compiler = next(package for package in metadata.distributions() if package.name in COMPILERS)
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compiler": f"{compiler.name} {compiler.version}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "rows": rows,
        "window": config.train.window if asked["program"] == "training step" else WINDOW,
        "words_of_chunk": form_for(devices).chunk or 2 * rows * config.train.window,
        "words_of_call": form_for(devices).new_words,
    }


asked = json.loads(sys.argv[1])
Path(asked["answer"]).write_text(json.dumps(run(asked)), encoding="utf-8")
