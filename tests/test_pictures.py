"""Pictures of what vectors know: what is in them, that all of it can be read, what is refused."""

import itertools
import json
import math
import struct
import sys
import types

import numpy as np
import pytest
from conftest import SMALL, fails, write_random_model
from matplotlib.text import Text

from elmo_jax import InputError, pictures
from elmo_jax import __main__ as tools
from elmo_jax.tasks.formats import Occurrence, WordOccurrences
from elmo_jax.tasks.report import Figure
from elmo_jax.tasks.systems import Vectors, room


class Planted:
    """Vectors [M, 3, 5]: of the word, of the sentence's first token, of both, with the place."""

    name, layers, identity, elmo = "planted", ("words", "LSTM 1", "LSTM 2"), "planted", None

    def embed(self, sentences):
        vectors = room(sentences, 3, 5)
        random = lambda word: np.random.default_rng([*map(ord, word)]).normal(size=5)
        for number, tokens in enumerate(sentences):
            for place, token in enumerate(tokens):
                first = random(tokens[0])
                vectors.of(number)[place] = random(token), first, random(token) + first + 0.01 * place
        return Vectors(*vectors)


def word_of(count, senses=3, name="line"):
    tokens = lambda number: [f"s{number % senses}", "a", name, "."]
    occurrences = [Occurrence(str(n), name, 2, f"sense {n % senses}", tokens(n)) for n in range(count)]
    return WordOccurrences(name, occurrences, "")


def boxes(figure):
    """The texts that can be seen, and where they are, in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    # Ticks beyond the ends of an axis are not drawn, but found.
    drawn = {tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_majorticklabels()}
    inside = {label for axes in figure.axes for label in visible_ticks(axes)}
    hidden = {id(text) for text in drawn - inside}
    return [(name, box) for text, (name, box) in zip(texts, shown, strict=True) if id(text) not in hidden]


def visible_ticks(axes):
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = min(low, high), max(low, high)
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
            if low - 1e-9 <= place <= high + 1e-9:
                yield label


def check_legible(figure):
    """1000 pixels wide, all texts inside, none over another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert width == 1000
    found = boxes(figure)
    assert len(found) > 3
    for name, box in found:
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name
        assert box.height >= 7, name
    for (name, box), (other, other_box) in itertools.combinations(found, 2):
        assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), (name, other)
    return [name for name, _ in found]


def results(systems=("english", "untrained"), tasks=("word-sense", "sentiment"), seeds=3):
    """Figures of two tasks as evaluate writes them."""
    figures = []
    for number, (task, system) in enumerate(itertools.product(tasks, systems)):
        add = lambda vectors, value, details, task=task, system=system: figures.append(
            Figure(task, f"{task}-data", system, vectors, "accuracy", value, value - 0.02, value + 0.01, "", details)
        )
        for layer, name in enumerate(("words", "LSTM 1", "LSTM 2")):
            add(name, 0.5 + 0.1 * layer + 0.01 * number, {})
        shares = np.random.default_rng(number).dirichlet([4, 4, 4], seeds)
        add("mix", 0.8, {"mix": shares.tolist(), "gamma": [1.0] * seeds})
        add("fine-tuned", 0.85, {})
    return figures


def write_results(path, figures):
    values = [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in (figure._asdict() for figure in figures)
    ]
    path.write_text(json.dumps({"figures": values}))
    return path


def test_principal_components():
    """Points on a line in five dimensions, and a little beside it."""
    generator = np.random.default_rng(0)
    along, aside = np.eye(5)[1] * 3, np.eye(5)[4] * 0.5
    places = generator.normal(size=(2, 40))
    vectors = 7 + places[0][:, None] * along + places[1][:, None] * aside
    points, shares = pictures.principal(vectors)
    assert abs(shares.sum() - 1) < 1e-9
    assert shares[0] > 0.9
    distances = lambda array: np.linalg.norm(array[:, None] - array[None], axis=-1)
    assert np.allclose(distances(points), distances(vectors))
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()
    assert np.allclose(pictures.principal(-vectors)[0][:, 0].max(), np.abs(points[:, 0]).max())
    alike, none = pictures.principal(np.ones((4, 5)))
    assert (alike == 0).all()
    assert (none == 0).all()
    two = np.float32(generator.normal(size=(2, 300)))[[0, 1] * 30] + np.float32(1e-7) * generator.normal(size=(60, 300))
    assert not pictures.principal(two)[0][:, 1].any()


@pytest.mark.parametrize("senses", [2, 6, 11])
def test_senses(senses):
    figure = pictures.senses(Planted(), word_of(60, senses))
    texts = check_legible(figure)
    assert "“line”, 60 occurrences, by planted" in texts
    assert "words (one vector)" in texts
    named = [text for text in texts if text.startswith("sense ")]
    assert len(named) == min(senses, 7)
    assert ("4 other senses (20)" in texts) == (senses == 11)
    assert sum(int(text.split("(")[1][:-1]) for text in texts if "sense" in text) == 60
    points = [len(group.get_offsets()) for group in figure.axes[1].collections]
    assert sum(points) == 60
    colours = {tuple(group.get_facecolor()[0]) for group in figure.axes[1].collections}
    assert len(colours) == min(senses, 8)


def test_senses_of_many_occurrences(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_OCCURRENCES", 20)
    word = word_of(50)
    chosen = pictures.chosen_occurrences(word)
    assert chosen == pictures.chosen_occurrences(word)
    assert len({occurrence.id for occurrence in chosen}) == 20
    assert "“line”, 20 of 50 occurrences, by planted" in check_legible(pictures.senses(Planted(), word))


def test_umap_where_it_is_installed(monkeypatch):
    asked = {}

    class Umap:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, vectors):
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    assert "UMAP 1" in check_legible(pictures.senses(Planted(), word_of(9), "umap"))
    assert asked == {"n_neighbors": 8, "metric": "cosine", "random_state": 0, "n_jobs": 1}
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match="this needs the package umap"):
        pictures.senses(Planted(), word_of(9), "umap")


@pytest.mark.slow
def test_umap_itself():
    pytest.importorskip("umap")
    vectors = np.random.default_rng(0).normal(size=(30, 5)) + 9 * (np.arange(30) % 2)[:, None] * np.eye(5)[0]
    points = pictures.plane(vectors, "umap").points
    assert points.shape == (30, 2)
    assert np.array_equal(points, pictures.plane(vectors, "umap").points)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bank of $ 5 and $ 6 .", "the bank"),
        ("the bank of the river rose by it", "a central bank lowered all of its rates"),
        (" ".join(f"internationalism{n}" for n in range(20)), " ".join(f"w{n}" for n in range(20))),
        ("one", "one"),
    ],
)
def test_similarity(first, second):
    first, second = first.split(), second.split()
    figure = pictures.similarity(Planted(), first, second)
    texts = check_legible(figure)
    assert texts.count("LSTM 2") == 1
    for token in {*first, *second}:
        assert token.replace("$", r"\$") in texts or f"{token[:11]}…" in texts
    images = [axes.images[0] for axes in figure.axes[:3]]
    vectors = Planted().embed([first, second])
    for layer, image in enumerate(images):
        one, other = vectors.of(0)[:, layer], vectors.of(1)[:, layer]
        expected = one @ other.T / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)[None]
        assert np.allclose(image.get_array(), expected, atol=1e-6)
        assert image.get_clim() == images[0].get_clim()


def test_mixes():
    figures = results(tasks=("word-sense", "sentiment", "chunking"))
    figure = pictures.mixes(figures)
    texts = check_legible(figure)
    (axes,) = figure.axes
    assert len(axes.patches) == 3 * 2 * 3
    of_bars = [sum(bar.get_width() for bar in axes.patches[first : first + 3]) for first in range(0, 18, 3)]
    assert np.allclose(of_bars, 1)
    expected = np.mean(figures[3].details["mix"], 0)
    assert np.allclose([bar.get_width() for bar in axes.patches[:3]], expected)
    assert "sentiment, sentiment-data\nuntrained" in texts
    assert any("±" in text for text in texts)
    one = pictures.mixes(results(seeds=1))
    assert not any("%" in text and "±" in text for text in check_legible(one))
    more = figures[3]._replace(details={"mix": [[0.25] * 4] * 5})
    with pytest.raises(InputError, match="english has shares 5 x 4 in the mix, and figures of 3 layers"):
        pictures.mixes([*figures[:3], more, *figures[4:]])


def test_shares_that_have_room_are_told():
    figures = results(("english",), ("sentiment",))
    mixes = [figure._replace(details={"mix": [[0.03, 0.07, 0.9]] * 2}) for figure in figures if figure.vectors == "mix"]
    layers = [figure for figure in figures if figure.vectors != "mix"]
    texts = check_legible(pictures.mixes([*layers, *mixes]))
    assert {text for text in texts if text.endswith(("± 0", "7%", "3%"))} == {"7%", "90% ± 0"}


@pytest.mark.parametrize("tasks", [("sentiment",), ("word-sense", "sentiment", "chunking")])
def test_probes(tasks):
    figures = results(("english", "portuguese", "untrained"), tasks)
    figures.append(Figure(tasks[0], f"{tasks[0]}-data", "glove", "words", "accuracy", 0.4, math.nan, math.nan, "", {}))
    most = Figure(tasks[0], f"{tasks[0]}-data", "most frequent", "none", "accuracy", 0.3, 0.2, 0.4, "", {})
    figures.append(most)
    figures.append(Figure("bias", "names", "english", "words", "d", 1.0, 0.5, 1.5, "", {}))  # of one layer: left out
    figure = pictures.probes(figures)
    texts = check_legible(figure)
    assert len(figure.axes) == len(tasks)
    assert {"english", "portuguese", "untrained", "glove", "most frequent", "mix", "fine-tuned"} <= {*texts}
    line = figure.axes[0].containers[0]
    assert np.allclose(line.lines[0].get_ydata(), [0.5, 0.6, 0.7])
    low, high = np.array(line.lines[2][0].get_segments())[1, :, 1]
    assert np.allclose([low, high], [0.58, 0.61])
    levels = [line.get_ydata() for line in figure.axes[0].lines if len(set(line.get_xdata())) == 2]
    assert [0.3, 0.3] in [list(level) for level in levels]
    chosen = pictures.of_tasks(figures, tasks[:1])
    assert {figure.task for figure in chosen} == {tasks[0]}


def test_results_are_read_as_they_were_written(tmp_path):
    figures = results()
    none = figures[0]._replace(low=math.nan, high=math.nan)
    path = write_results(tmp_path / "results.json", [none, figures[1]._replace(value=math.nan), *figures[2:]])
    read = pictures.read_results(str(path))
    assert read[1:] == figures[2:]
    assert read[0][:6] == none[:6]
    assert math.isnan(read[0].low)


def test_panels():
    """A metric is shown with what is told of it in general; of one layer there is no panel."""
    figure = lambda system, vectors, metric: Figure("t", "d", system, vectors, metric, 0.5, 0.4, 0.6, "", {})
    named = [figure("elmo", name, metric) for metric in ("F, one", "F, other") for name in ("words", "mix", "LSTM 1")]
    most, counts = figure("most", "none", "F"), figure("counts", "words of it", "F, other")
    one, other = pictures.panels_of([*named, most, counts, figure("glove", "words", "F, one")])
    assert list(one.places) == ["words", "LSTM 1", "mix"]
    assert one.references == [most]
    assert [figure.system for figure in one.figures] == ["elmo", "elmo", "elmo", "glove"]
    assert other.references == [counts, most]
    assert one.title == "t · d"


def test_commands(tmp_path, monkeypatch, capsys):
    """From files to files; SVG is the same each time."""
    monkeypatch.setattr(pictures, "system_of", lambda name: {"model": Planted()}[name])
    lines = [
        {"word": "bank", "index": n % 3, "sense": f"s{n % 2}", "tokens": ["a"] * (n % 3) + ["bank", "."]}
        for n in range(8)
    ]
    (tmp_path / "bank.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_results(tmp_path / "results.json", results())
    commands = {
        "senses": ["--model", "model", "--data", tmp_path / "bank.jsonl"],
        "similarity": ["--model", "model", "--first", "a bank .", "--second", "the bank"],
        "mixes": [tmp_path / "results.json", "--tasks", "sentiment"],
        "probes": [tmp_path / "results.json"],
    }
    for name, options in commands.items():
        for suffix in (".png", ".svg") if name in ("senses", "mixes") else (".png",):
            output = tmp_path / f"{name}{suffix}"
            tools.main(["draw", name, *map(str, options), "--output", str(output)])
            assert f"wrote {output}" in capsys.readouterr().out
        assert struct.unpack(">I", (tmp_path / f"{name}.png").read_bytes()[16:20]) == (1000,)
    before = (tmp_path / "mixes.svg").read_bytes()
    tools.main(["draw", "mixes", *map(str, commands["mixes"]), "--output", str(tmp_path / "mixes.svg")])
    assert (tmp_path / "mixes.svg").read_bytes() == before
    svg = (tmp_path / "senses.svg").read_text()
    assert "<!-- LSTM 1 (2 different vectors) -->" in svg
    assert "<!-- s1 (4) -->" in svg
    assert "<!-- sentiment, sentiment-data -->" in (tmp_path / "mixes.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["senses", "--model", "model", "--data", "words", "--output", "p.pdf"], "ends in .png or .svg"),
        (["senses", "--model", "model", "--data", "words", "--output", "p.png"], "words has 2 words"),
        (["senses", "--model", "model", "--data", "words/a.jsonl", "--output", "p.png"], "a has 2 occurrences"),
        (["senses", "--model", "none", "--data", "words/b.jsonl", "--output", "p.png"], "no folder none"),
        (["similarity", "--model", "model", "--first", "", "--second", "a", "--output", "p.png"], "--first has 0"),
        (["similarity", "--model", "model", "--first", "a", "--second", "a " * 21, "--output", "p.png"], "has 21 tok"),
        (["mixes", "none.json", "--output", "p.png"], "there is no file none.json"),
        (["mixes", "model/options.json", "--output", "p.png"], "has no figures; give a results.json"),
        (["mixes", "wrong.json", "--output", "p.png"], "wrong.json: figure 2 is"),
        (["mixes", "bare.json", "--output", "p.png"], "have no learned mixes"),
        (["probes", "bare.json", "--output", "p.png"], "no figures of several layers"),
        (["probes", "results.json", "--tasks", "chunks", "--output", "p.png"], "no task 'chunks', but word-sense"),
        (["probes", "many.json", "--output", "p.png"], "13 panels, more than 12; name tasks"),
        (["mixes", "many.json", "--output", "p.png"], "39 learned mixes, more than 30; name tasks"),
        (["mixes", "results.json", "--output", "results.json/p.png"], "cannot write"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "model" in arguments or "none" in arguments:
        write_random_model(tmp_path / "model", SMALL)
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "options.json").exists() or (tmp_path / "model" / "options.json").write_text("{}")
    (tmp_path / "words").mkdir()
    for name, count in (("a", 2), ("b", 4)):
        lines = [{"word": "w", "index": 0, "sense": f"s{n % 2}", "tokens": ["w"]} for n in range(count)]
        (tmp_path / "words" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_results(tmp_path / "results.json", results())
    write_results(tmp_path / "bare.json", results()[:1])
    write_results(tmp_path / "many.json", results("abc", [f"task {n}" for n in range(13)]))
    wrong = json.loads((tmp_path / "results.json").read_text())
    wrong["figures"][1]["value"] = "0.6"
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    before = sorted(tmp_path.rglob("*"))
    fails(tools.main, ["draw", *arguments], message, capsys)
    assert sorted(tmp_path.rglob("*")) == before
