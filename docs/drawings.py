"""The drawings of the page "How it works", as SVG in the colours of the page around it, light or dark.

They are as wide as a narrow screen, so that their letters stay legible there.
"""

from collections.abc import Callable, Sequence
from html import escape

from elmo_jax.streams import Layout

WIDTH, CELL, HEIGHT = 420, 45, 30
# Okabe and Ito's colours, which people tell apart however they see colours.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00")


def text(x: float, y: float, content: str, anchor: str = "middle", size: int = 14) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="currentColor">'
        f"{escape(content)}</text>"
    )


def box(x: float, y: float, width: float, height: float, content: str = "", colour: int | None = None) -> str:
    """A rectangle with a word in its middle; the colour lets the page's own shine through."""
    fill = "none" if colour is None else COLOURS[colour]
    shape = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" fill-opacity="0.4" '
        'stroke="currentColor"/>'
    )
    return shape + text(x + width / 2, y + height / 2 + 5, content)


def line(x: float, y: float, to_x: float, to_y: float, style: str = 'marker-end="url(#arrow)"') -> str:
    return f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" stroke="currentColor" fill="none" {style}/>'


def drawing(height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="currentColor"/></marker></defs>'
    )
    label = escape(title, quote=True)
    return f'<div class="drawing"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">' + (
        head + "".join(parts) + "</svg></div>"
    )


def streams() -> str:
    """Four sentences in two rows, cut into two windows, as `streams.Layout` lays them."""
    sentences = ["Rain fell .", "We saw the old sea .", "The sun set late .", "Go on"]
    tokens = [sentence.split() for sentence in sentences]
    left, window, parts = 58, 4, []
    tops = {(row, direction): 42 + row * 100 + direction * 46 for row in range(2) for direction in range(2)}
    layout = Layout(2, window, enumerate(map(len, tokens)))
    for number, segments in enumerate(layout):
        for row, start, sentence, offset, length, _ in zip(*(array.tolist() for array in segments), strict=True):
            for direction, words in enumerate((tokens[sentence], tokens[sentence][::-1])):
                top = tops[row, direction]
                for place in range(length):
                    x = left + (number * window + start + place) * CELL
                    parts.append(box(x, top, CELL, HEIGHT, words[offset + place], sentence))
                if offset == 0:  # the state begins anew
                    x = left + (number * window + start) * CELL
                    parts.append(f'<path d="M{x + 2} {top - 1} v-9 h9 z" fill="currentColor"/>')
    for (row, direction), top in tops.items():
        parts.append(text(left - 6, top + 20, "←" if direction else "→", "end"))
        if direction == 0:
            parts.append(text(0, top + 43, f"row {row + 1}", "start"))
    for number in range(2):
        x = left + number * window * CELL
        parts.append(text(x + window * CELL / 2, 18, f"window {number + 1}"))
    border = left + window * CELL
    parts.append(line(border, 6, border, 226, 'stroke-width="2" stroke-dasharray="5 4"'))
    parts.append(text(left, 250, "◤ a sentence begins: in embedding, the state is reset", "start"))
    title = "Sentences laid end to end in two rows, each read in both directions, and cut into windows"
    return drawing(260, title, parts)


def word_types() -> str:
    """The positions of a window, its distinct words, the char CNN, and the positions gathering its vectors."""
    words = ["the", "cat", "saw", "the", "dog", "."]
    types = list(dict.fromkeys(words))
    wide, parts = 64, []
    position = lambda place: 18 + place * wide
    kind = lambda number: 50 + number * wide
    parts.append(text(WIDTH / 2, 16, "positions of a window"))
    parts.append(text(WIDTH / 2, 262, "positions, with their vectors"))
    for place, word in enumerate(words):
        number = types.index(word)
        parts.append(box(position(place), 24, wide, HEIGHT, word, number))
        parts.append(line(position(place) + wide / 2, 54, kind(number) + wide / 2, 84))
        parts.append(line(kind(number) + wide / 2, 182, position(place) + wide / 2, 212))
        parts.append(box(position(place), 214, wide, HEIGHT, word, number))
    for number, word in enumerate(types):
        parts.append(box(kind(number), 86, wide, HEIGHT, word, number))
    parts.append(box(kind(0), 122, wide * len(types), 56, "char CNN, once for each distinct word"))
    return drawing(272, "Six positions share five distinct words, which the char CNN reads once each", parts)


def explicit_arrays() -> str:
    """Two steps of the model: what goes in and what comes out, and the state from one to the next."""
    parts = [box(118, 6, 184, HEIGHT, "parameters", 1)]
    for number, x in enumerate((62, 248)):
        parts.append(line(165 if number == 0 else 255, 36, x + 55, 82))
        parts.append(box(x, 84, 110, 44, "model"))
        parts.append(box(x - 14, 170, 64, HEIGHT, "window", 0))
        parts.append(line(x + 24, 170, x + 36, 130))
        parts.append(box(x + 56, 170, 84, HEIGHT, "activations", 2))
        parts.append(line(x + 76, 128, x + 92, 168))
    for x in (2, 186, 370):
        parts.append(box(x, 91, 48, HEIGHT, "state", 3))
    for x, to_x in ((50, 60), (172, 184), (234, 246), (358, 368)):
        parts.append(line(x, 106, to_x, 106))
    title = "From parameters, state and window the model makes activations and the state for the next window"
    return drawing(206, title, parts)


DRAWINGS: dict[str, Callable[[], str]] = {
    "streams": streams,
    "word-types": word_types,
    "explicit-arrays": explicit_arrays,
}
