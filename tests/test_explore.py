"""The page of words in their contexts: what it holds, and in a browser what it does."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import SMALL, fails, write_random_model
from test_pictures import Planted

from elmo_jax import __main__ as tools
from elmo_jax import explore

TEXT = [line.split() for line in ("s0 a line </script> .", "s1 the line", "s2 line & line <b>", "s1 two lines")] * 3


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of a text, and what is on it."""
    found = explore.explored(Planted(), lambda: iter(TEXT), ["line", "lines", "line"], [])
    output = tmp_path_factory.mktemp("page") / "page.html"
    explore.write_page(found, "a text", output)
    return output


def data_of(page):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>\n<script>', page.read_text(), re.S)
    return json.loads(data)


def test_what_the_page_holds(page):
    data = data_of(page)
    assert (data["model"], data["text"], data["layers"]) == ("planted", "a text", ["words", "LSTM 1", "LSTM 2"])
    assert [(word["word"], word["count"]) for word in data["words"]] == [("line", 12), ("lines", 3)]
    line = data["words"][0]
    assert line["contexts"][:4] == [
        ["s0 a", "line", "</script> ."],
        ["s1 the", "line", ""],
        ["s2", "line", "& line <b>"],
        ["s2 line &", "line", "<b>"],
    ]
    assert [layer["different"] for layer in line["layers"]] == [1, 3, 4]
    for layer in line["layers"]:
        points = np.array(layer["points"])
        assert points.shape == (12, 2)
        assert points.min() >= 0
        assert points.max() <= data["grid"]
        for number, near in enumerate(layer["near"]):
            assert len(set(near) - {number}) == explore.NEIGHBOURS
        assert (np.diff(layer["cosines"], axis=1) <= 0).all()
    # Of the first token's vectors the nearest are those of sentences that begin with it.
    begins = [left.split()[0] for left, *_ in line["contexts"]]
    for number, near in enumerate(line["layers"][1]["near"]):
        same = [other for other in near if begins[other] == begins[number]]
        assert len(same) == min(explore.NEIGHBOURS, begins.count(begins[number]) - 1)
        assert same == near[: len(same)]


def test_it_needs_no_network(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"\w+://[^\s\"']*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, not a place
    assert not re.search(r"""\b(src|href|action)\s*=|url\(|@import|\bimport\b""", text)
    assert text.count("</script>") == 2


def test_layers_lie_as_they_lay_before():
    """Turned and mirrored, a layer comes to lie on the one before."""
    points = np.random.default_rng(0).normal(size=(9, 2))
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert np.allclose(explore.turned(points @ rotation * [1, -1], points), points)
    assert explore.turned(points, None) is points


def test_occurrences(monkeypatch):
    monkeypatch.setattr(explore, "MOST_OCCURRENCES", 5)
    text = [[f"t{number}", "word", "other"] for number in range(400)]
    found = explore.occurrences_of(text, ["word", "other"])
    assert [of_word.count for of_word in found.values()] == [400, 400]
    assert found == explore.occurrences_of(iter(text), ["word", "other"])
    for of_word in found.values():
        places = [int(occurrence.tokens[0][1:]) for occurrence in of_word.occurrences]
        assert len(set(places)) == 5
        assert places == sorted(places)
        assert max(places) > 100
    words = [f"w{number}" for number in range(50)]
    text = [[str(number), *words] for number in range(200)]
    chosen = [one.tokens[0] for of_word in explore.occurrences_of(text, words).values() for one in of_word.occurrences]
    assert len(chosen) == 250
    assert abs(np.mean(list(map(int, chosen))) - 99.5) < 15  # any is as likely as any other: 4 standard errors


def test_frequent_words(monkeypatch):
    text = [["the", "old", "bank", "."], ["the", "old", "bank", "5"], ["the", "old", "bank", "5"], ["the", "5", "rare"]]
    assert explore.frequent_words(text) == ["the", "bank", "old"]
    monkeypatch.setattr(explore, "LITTLE_MEANING", 1)
    assert explore.frequent_words(text) == ["bank", "old"]
    with pytest.raises(ValueError, match="no word of the text occurs 3 times"):
        explore.frequent_words(text[2:])
    with pytest.raises(ValueError, match="the text has no words; give text"):
        explore.frequent_words([[]])


def test_long_contexts_are_cut():
    from elmo_jax.tasks.formats import Occurrence

    tokens = [f"t{number}" for number in range(60)]
    left, word, right = explore.context_of(Occurrence("", "t30", 30, "", tokens))
    assert left.split() == ["…", *tokens[10:30]]
    assert word == "t30"
    assert right.split() == [*tokens[31:51], "…"]


def test_command(tmp_path, capsys):
    model = write_random_model(tmp_path / "model", SMALL)
    (tmp_path / "text.txt").write_text("".join(" ".join(tokens) + "\n" for tokens in TEXT))
    output = tmp_path / "page.html"
    command = ["explore", model, tmp_path / "text.txt", "--output", output, "--layers", "0", "2"]
    tools.main(list(map(str, command)))
    assert f"wrote {output}: 5 words, 24 of their 24 occurrences" in capsys.readouterr().out
    data = data_of(output)
    assert data["layers"] == ["words", "LSTM 2"]
    assert [word["word"] for word in data["words"]] == ["line", "a", "lines", "the", "two"]
    assert [layer["different"] for layer in data["words"][0]["layers"]] == [1, 4]
    tools.main(["explore", str(model), "builtin", "--output", str(output), "--words", "coroutine", "--layers", "1"])
    assert "1 words, " in capsys.readouterr().out
    assert data_of(output)["text"] == "builtin"
    output.unlink()
    before = sorted(tmp_path.rglob("*"))
    fails(tools.main, [*command, "--words", "line", "Line", "bank"], "the text has 'Line' 0 times, 'bank' 0", capsys)
    fails(tools.main, [*command[:-1], "3"], "--layers has 3; model has the layers 0 (words), 1 (LSTM 1)", capsys)
    fails(tools.main, [*command[:4], tmp_path / "page.txt"], "give a file that ends in .html", capsys)
    fails(tools.main, ["explore", model, tmp_path / "no.txt", *command[3:5]], "there is no file", capsys)
    fails(tools.main, ["explore", model, "-", *command[3:5]], "read twice", capsys)
    many = ["--words", *(f"w{number}" for number in range(51))]
    fails(tools.main, [*command, *many], "--words has 51 words; a page has room for 50", capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(page, width):
    """Words and layers are chosen, sentences told on hover, nearest contexts on click and by keys; all offline."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    data = data_of(page)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.locator("#word option").all_inner_texts() == ["line (12)", "lines (3)"]
        assert tab.locator("circle").count() == 12
        assert "4 different vectors" in tab.locator("#stand").inner_text()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # The mouse: a sentence on hover, the nearest contexts on click.
        circle = tab.locator("circle").nth(11)  # nothing lies over the last
        circle.hover()
        assert tab.locator("#tip").inner_text() == " ".join(data["words"][0]["contexts"][11]).strip()
        circle.click()
        assert tab.locator("#near li").count() == explore.NEIGHBOURS
        cosines = [f"{value:.3f}" for value in data["words"][0]["layers"][2]["cosines"][11]]
        assert tab.locator("#near .cosine").all_inner_texts() == cosines
        assert tab.locator(".thread").count() == explore.NEIGHBOURS
        tab.locator("#near button").first.click()
        first = data["words"][0]["layers"][2]["near"][11][0]
        assert tab.locator("#sentence").inner_text() == " ".join(data["words"][0]["contexts"][first]).strip()
        # The keyboard: another layer, another word, a point.
        tab.locator("input[value='2']").focus()
        tab.keyboard.press("ArrowLeft")
        assert tab.locator("#stand").inner_text().startswith("LSTM 1: 12 occurrences, 3 different vectors.")
        tab.keyboard.press("ArrowLeft")
        assert tab.locator("#stand").inner_text() == "words: 12 occurrences, one vector."
        tab.locator("#word").focus()
        tab.keyboard.press("ArrowDown")
        assert tab.locator("circle").count() == 3
        tab.locator("circle").first.focus()
        for key in ("ArrowRight", "ArrowDown", "Enter"):
            tab.keyboard.press(key)
        assert tab.locator("circle[aria-selected=true]").count() == 1
        assert tab.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert tab.locator("#near li").count() == 2
        tab.locator("summary").focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#all button").count() == 3
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []
        assert asked == [page.as_uri()]
        browser.close()
