"""Compiled programs are kept from process to process, and JAX's settings are the application's own."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, SENTENCES, SMALL, script_environment, write_random_model

import elmo_jax
from elmo_jax import compilation

CHANGED = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
)


def settings():
    return dict(jax.config.values)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """JAX as it is in an application that has told it nothing; the folder of compiled programs."""
    before = {name: getattr(jax.config, name) for name in CHANGED}
    compilation._apply(dict(zip(CHANGED, (None, 1.0, -1), strict=True)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "elmo_jax"
    compilation._apply(before)


cell_dims = itertools.count(20)


@pytest.fixture
def folder(tmp_path):
    """A model whose programs have not been compiled."""
    return write_random_model(tmp_path / "model", dataclasses.replace(SMALL, cell_dim=next(cell_dims)))


def programs(cache):
    return sorted(path.name for path in cache.glob("*-cache"))


def compile_another():
    """A program of the host application's, another one each time, and slow enough in its eyes to be kept."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compile_another.count += 1
    jax.jit(lambda x: x * compile_another.count + 1)(jnp.ones(3))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


compile_another.count = 0


def test_load_and_embed_leave_the_settings_alone(cache, folder):
    """Our programs are kept, those that the host application compiles before and after are not; its settings stand."""
    before = settings()
    compile_another()
    elmo = elmo_jax.load(folder)
    assert settings() == before
    elmo.embed(SENTENCES[:2])
    assert settings() == before
    kept = programs(cache)
    assert len(kept) >= 3  # the start state, the words' vectors, a window
    compile_another()
    assert programs(cache) == kept
    assert settings() == before


def test_settings_are_touched_where_programs_are_compiled_only(cache, folder, monkeypatch):
    elmo = elmo_jax.load(folder)
    expected = elmo.embed(SENTENCES[:2])
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "_apply", lambda settings: pytest.fail("a call that compiles nothing"))
        again = elmo.embed(SENTENCES[:2])
    assert all((one == other).all() for one, other in zip(again, expected, strict=True))


def test_settings_are_restored_after_a_failure(cache):
    before = settings()

    def failing():
        assert jax.config.jax_compilation_cache_dir == str(cache)
        raise MemoryError

    with pytest.raises(MemoryError):
        compilation.run(failing, (), keep=True)
    assert settings() == before


@pytest.mark.parametrize("value", ["0", "off", "OFF"])
def test_refused_by_the_environment(cache, monkeypatch, value):
    monkeypatch.setenv("ELMO_JAX_COMPILATION_CACHE", value)
    before = settings()
    compilation.keep_compiled()
    compilation.run(jax.jit(lambda x: x - 3), (), jnp.ones(3), keep=True)
    assert settings() == before
    assert not cache.exists()


def test_refused_by_the_caller(cache, folder):
    elmo_jax.load(folder, compilation_cache=False).embed(SENTENCES[:1])
    assert not cache.exists()


def test_where_jax_has_been_told_to_keep_programs(cache, tmp_path):
    told = {"jax_compilation_cache_dir": str(tmp_path / "told"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    compilation._apply(told)
    before = settings()
    compilation.keep_compiled()
    compilation.run(jax.jit(lambda x: x - 4), (), jnp.ones(3), keep=True)
    assert settings() == before
    assert programs(tmp_path / "told")
    assert not cache.exists()


def test_a_home_that_cannot_be_written_is_no_error(cache):
    cache.parent.write_text("a file")
    compilation.keep_compiled()
    compilation.run(jax.jit(lambda x: x - 5), (), jnp.ones(3), keep=True)
    assert jax.config.jax_compilation_cache_dir is None


def test_the_folder_is_bounded(cache, monkeypatch):
    """For commands, all programs are kept; the last ones, where there is not room for all."""
    cache.mkdir(parents=True)
    (cache / "left-by-version-0.1-cache").write_bytes(bytes(10_000))
    compilation.keep_compiled()
    assert jax.config.jax_compilation_cache_max_size == compilation.MAX_BYTES == 2**30
    assert jax.config.jax_compilation_cache_dir == str(cache)
    jax.jit(lambda x: x - 7)(jnp.ones(5))
    first = programs(cache)
    assert first
    assert "left-by-version-0.1-cache" not in first
    size = max(path.stat().st_size for path in cache.glob("*-cache"))
    compilation._apply({"jax_compilation_cache_max_size": 3 * size})
    for number in range(9):
        jax.jit(lambda x: x * x - number)(jnp.ones(5))  # noqa: B023
    assert sum(path.stat().st_size for path in cache.glob("*-cache")) <= 3 * size
    assert first[0] not in programs(cache)


HOST = """
import json, sys
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
import elmo_jax
elmo_jax.load(sys.argv[1]).embed(["it rained"])
count = lambda name: sum(event.endswith(name) for event in events)
print(json.dumps([count("compilation_cache/cache_hits"), count("compilation_cache/cache_misses")]))
"""


@pytest.mark.slow
def test_the_next_process_finds_the_programs(folder, tmp_path):
    environment = script_environment() | {"XDG_CACHE_HOME": str(tmp_path)}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-c", HOST, folder]
    counts = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout))
    (_, compiled), (found, compiled_again) = counts
    assert compiled == found >= 3
    assert compiled_again == 0
