import resource
import threading
import time

import numpy as np
import pytest

from elmo_jax import arrays
from elmo_jax.arrays import DESCRIPTION, GrowingArrays, Unusable, Unwritable, checksums, keep_arrays, read_arrays

DTYPES = {"numbers": np.int64, "letters": np.uint8}
KEY = {"made of": [["text", 5]]}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A checksum covers 24 bytes."""
    monkeypatch.setattr(arrays, "PART", 24)


def parts(count):
    """Of so many steps what each appends; some append nothing to one of the arrays."""
    generator = np.random.default_rng(3)
    for _ in range(count):
        sizes = generator.integers(0, 9, 2)
        numbers = generator.integers(-(2**60), 2**60, sizes[0])
        yield {"numbers": numbers, "letters": generator.integers(0, 256, sizes[1], np.uint8)}


def make(growing, count=9, stop=None, unsaved=0):
    """Goes on with the steps; interrupted after `stop` that were saved and some that were not."""
    done = growing.about["steps"] if growing.about else 0
    for number, part in enumerate(parts(count), start=1):
        if number <= done:
            continue
        if stop is not None and number > stop + unsaved:
            raise KeyboardInterrupt
        growing.append(part)
        if stop is None or number <= stop:
            growing.save({"steps": number})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_kept_is_what_was_appended(tmp_path):
    kept = keep_arrays(tmp_path / "new" / "kept", DTYPES, KEY, make)
    for name, dtype in DTYPES.items():
        expected = np.concatenate([part[name] for part in parts(9)])
        assert kept.arrays[name].dtype == dtype
        assert (kept.arrays[name] == expected).all()
        assert kept.checksums[name] == checksums(expected)
        assert len(kept.checksums[name]) == -(-expected.nbytes // 24)
    assert kept.about == {"steps": 9}
    again = keep_arrays(tmp_path / "new" / "kept", DTYPES, KEY, None)  # nothing is made
    assert (again.arrays["numbers"] == kept.arrays["numbers"]).all()


@pytest.mark.parametrize("unsaved", [0, 2])
def test_interrupted_making_goes_on_and_ends_with_the_same_bytes(tmp_path, unsaved):
    keep_arrays(tmp_path / "whole", DTYPES, KEY, make)
    for stop in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            keep_arrays(tmp_path / str(stop), DTYPES, KEY, lambda growing, stop=stop: make(growing, 9, stop, unsaved))
        begun = []

        def go_on(growing, begun=begun):
            begun.append(growing.about)
            make(growing)

        keep_arrays(tmp_path / str(stop), DTYPES, KEY, go_on)
        assert begun == [{"steps": stop} if stop else None]
        assert content(tmp_path / str(stop)) == content(tmp_path / "whole")


def test_what_was_begun_of_something_else_or_has_been_cut_is_begun_again(tmp_path):
    for number, change in enumerate(("key", "cut", "description")):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            keep_arrays(folder, DTYPES, KEY, lambda growing: make(growing, 9, 5))
        partial = folder.with_name(f"{number}.partial")
        if change == "cut":
            (partial / "numbers").write_bytes(b"1234567")
        if change == "description":
            (partial / DESCRIPTION).write_text('{"format": 1')
        with GrowingArrays(folder, DTYPES, "other" if change == "key" else KEY) as growing:
            assert growing.about is None
            assert growing.sizes == {"numbers": 0, "letters": 0}


def test_damage_is_found_and_what_is_damaged_made_again(tmp_path, capsys):
    folder = tmp_path / "kept"
    keep_arrays(folder, DTYPES, KEY, make)
    whole, generator = content(folder), np.random.default_rng(0)
    for number in range(60):
        name = ("numbers", "letters")[number % 2]
        data = bytearray(whole[name])
        if number < 40:
            data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        else:
            del data[generator.integers(len(data)) :]
        (folder / name).write_bytes(data)
        with pytest.raises(Unusable, match=f"is damaged: {name}"):
            read_arrays(folder, DTYPES, KEY)
        (folder / name).write_bytes(whole[name])
    (folder / "letters").unlink()
    keep_arrays(folder, DTYPES, KEY, make)
    assert capsys.readouterr().out == f"{folder} is damaged: letters is not what was written; it is made again\n"
    assert content(folder) == whole


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-3], "has a description.json that cannot be read"),
        (lambda text: "[1, 2]", "has a description.json that cannot be read"),
        (lambda text: text.replace('"about"', '"abbot"'), "has a description.json that cannot be read"),
        (lambda text: "[" * 100_000, "has a description.json that cannot be read"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "was written by another version"),
        (lambda text: text.replace("made of", "done of"), "is of other files, or these have changed"),
        (lambda text: text.replace("numbers", "pointers"), "is damaged: numbers"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path, change, reason):
    folder = tmp_path / "kept"
    keep_arrays(folder, DTYPES, KEY, make)
    (folder / DESCRIPTION).write_text(change((folder / DESCRIPTION).read_text()))
    with pytest.raises(Unusable, match=reason):
        read_arrays(folder, DTYPES, KEY)


def test_who_has_mapped_arrays_keeps_them_when_others_take_their_place(tmp_path):
    before = keep_arrays(tmp_path / "kept", DTYPES, KEY, make)
    expected = before.arrays["numbers"].copy()
    after = keep_arrays(tmp_path / "kept", DTYPES, "other", lambda growing: make(growing, 3))
    assert len(after.arrays["numbers"]) < len(expected)
    assert (before.arrays["numbers"] == expected).all()


def test_one_makes_the_arrays_and_the_others_wait(tmp_path, capsys):
    begun, goes_on, found, made = threading.Event(), threading.Event(), [], []

    def slowly(growing):
        made.append(growing)
        begun.set()
        goes_on.wait(20)
        make(growing)

    keep = lambda: found.append(keep_arrays(tmp_path / "kept", DTYPES, KEY, slowly))
    threads = [threading.Thread(target=keep) for _ in range(2)]
    threads[0].start()
    begun.wait(20)
    threads[1].start()
    printed, end = "", time.monotonic() + 20
    while "another process" not in printed:
        assert time.monotonic() < end
        printed += capsys.readouterr().out
        time.sleep(0.01)
    goes_on.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (found[0].arrays["numbers"] == found[1].arrays["numbers"]).all()
    assert printed == f"another process is making {tmp_path / 'kept'}: this one waits for it\n"


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"file/kept cannot be written \(.*; give another folder for the cache"):
        keep_arrays(tmp_path / "file" / "kept", DTYPES, KEY, make)


@pytest.mark.parametrize("size", [3000, 300_000])  # less than what Python holds back before it writes, and more
def test_a_disk_that_is_full(tmp_path, size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def large(growing):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        growing.append({"letters": np.zeros(size, np.uint8)})
        growing.save({})

    try:
        with pytest.raises(Unwritable, match=r"kept cannot be written \(File too large\)"):
            keep_arrays(tmp_path / "kept", DTYPES, KEY, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    keep_arrays(tmp_path / "kept", DTYPES, KEY, make)


def test_errors_of_the_maker_are_not_taken_for_the_folders(tmp_path):
    def fails(growing):
        raise FileNotFoundError("the text")

    with pytest.raises(FileNotFoundError, match="the text"):
        keep_arrays(tmp_path / "kept", DTYPES, KEY, fails)
