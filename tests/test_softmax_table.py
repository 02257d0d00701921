"""Where words are in the divided table, whatever the number of devices."""

import numpy as np
import pytest

from elmo_jax import softmax_table


@pytest.mark.parametrize("rows", [1, 3, 12, 256, 8 * 128, 256 * 128])
def test_every_place_has_one_word(rows):
    size = softmax_table.table_size(5 * rows + 1, rows)
    assert size == 6 * rows
    words = np.arange(size, dtype=np.int32)
    places = softmax_table.places_of(words, rows, size)
    assert places.dtype == np.int32
    assert (np.sort(places) == words).all()
    assert (softmax_table.words_at(places, rows, size) == words).all()


@pytest.mark.parametrize("devices", [2, 4, 8, 256])
def test_frequent_words_are_dealt_evenly(devices):
    """Of any n consecutive words from a multiple of n each of n devices has one."""
    rows = 256 * 128
    size = softmax_table.table_size(793_471, rows)
    words = np.arange(4096, dtype=np.int32)
    owners = softmax_table.places_of(words, rows, size) // (size // devices)
    assert (np.sort(owners.reshape(-1, devices), 1) == np.arange(devices)).all()


def test_places_without_a_word_are_filled():
    array = np.arange(11 * 2, dtype=np.float32).reshape(11, 2)
    found = softmax_table.in_places(array, 4, -7.0)
    places = softmax_table.places_of(np.arange(12, dtype=np.int32), 4, 12)
    assert (found[places] == [*array, [-7, -7]]).all()
    assert (softmax_table.in_places(array, 4, -7.0, range(3, 9)) == found[3:9]).all()


@pytest.mark.parametrize(("devices", "part"), [(1, 10_000), (2, 30), (8, 1000), (256, 3200)])
def test_room_is_about_an_equal_share(devices, part):
    room = softmax_table.room(5120, devices, part)
    assert min(part, 5120 / devices) <= room <= min(5120, part)
    assert devices * room <= max(1.5 * 5120, devices * 10) or room == part
