# `make demo` and `make test` need nothing but Python (3.11 or newer) and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow docs results screenshot fuzz notebook peers compilers

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --config-settings editable_mode=compat --editable .
	touch $@

# Trains the tiny model on the built-in text, embeds a few sentences, and looks at one word in them.
demo: .venv/installed
	$(BIN)/python train.py tiny --workdir runs/demo
	$(BIN)/python embed.py --model runs/demo --input configs/demo_sentences.txt --output runs/demo/embeddings.hdf5
	$(BIN)/python -m elmo_jax nearest runs/demo/embeddings.hdf5 --word with

test: .venv/installed
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet -m "not slow" --numprocesses auto --dist worksteal

# Many runs, much text, several processes; Ray, for a cluster of two nodes; PyTorch. Minutes rather than seconds.
test-slow: .venv/installed
	$(BIN)/pip install --quiet 'ray[data]==2.60.0' torch==2.13.0
	$(BIN)/python -m pytest --quiet -m slow --numprocesses 2 --dist worksteal

# The site: open docs/_build/html/index.html. Needs no network.
docs: .venv/installed
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs docs/_build/html

# Trains the models of docs/results.md, measures and draws what they know; hours. DATA: a folder with texts and tasks.
results: .venv/installed
	$(BIN)/python -m benchmarks.knowledge --data $(DATA)
	$(BIN)/python -m benchmarks.tables docs/results.md

# Every reader of files, one after the other: twenty minutes. The counts are added to those of fuzz/results.json.
fuzz: .venv/installed
	$(BIN)/pip install --quiet atheris==3.0.0
	$(BIN)/python -m fuzz --minutes 20

# Runs the notebooks with the demo's model and keeps what they show.
notebook: .venv/installed
	$(BIN)/pip install --quiet torch==2.13.0
	test -d runs/demo/model || $(MAKE) demo
	$(BIN)/python -m notebooks.execute

# Takes the picture of explore's page; chromium must be installed.
screenshot: .venv/installed
	$(BIN)/pip install --quiet playwright==1.65.2
	test -d runs/demo/model || $(MAKE) demo
	$(BIN)/python docs/screenshot.py runs/demo

# What the benchmarks compare with, each in an environment of its own: AllenNLP (the last, for Python 3.9), PyTorch, and
# the TensorFlow that runs bilm-tf.
PYTHON39 ?= python3.9
peers: .venv/installed
	$(PYTHON39) -m venv .peers/allennlp
	.peers/allennlp/bin/pip install --quiet "allennlp==2.10.1" "numpy<2"
	$(PYTHON) -m venv .peers/torch
	.peers/torch/bin/pip install --quiet torch==2.13.0 numpy h5py
	$(PYTHON) -m venv .peers/bilm-tf
	.peers/bilm-tf/bin/pip install --quiet tensorflow-cpu==2.21.0 tf_keras

# The compilers of TPUs and GPUs, for benchmarks.compiled, each in an environment of its own, with this project's
# versions of JAX; no such machine is needed.
COMPILER_INSTALL = bin/pip install --quiet --constraint .compilers/constraints.txt --config-settings editable_mode=compat
compilers: .venv/installed
	mkdir -p .compilers
	sed 's/\[.*\]//' requirements.txt > .compilers/constraints.txt
	$(PYTHON) -m venv .compilers/tpu
	.compilers/tpu/$(COMPILER_INSTALL) --editable '.[tpu]'
	$(PYTHON) -m venv .compilers/cuda
	.compilers/cuda/$(COMPILER_INSTALL) --editable '.[train]' 'jax[cuda13-local]' nvidia-cuda-nvcc
