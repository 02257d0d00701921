"""Files of tasks: what is read of them as they are, and what is told of those that are wrong."""

import bz2
import gzip
import json

import pytest
from conftest import GOLDEN

from elmo_jax.errors import InputError
from elmo_jax.tasks import formats
from elmo_jax.tasks.formats import (
    InContext,
    Labelled,
    Pair,
    Tagged,
    allowed,
    digest,
    read_labelled,
    read_occurrences,
    read_questions,
    read_ratings,
    read_tagged,
    read_text,
    read_word_sets,
    stem,
)

SENSES = [
    {"id": "a", "word": "Bank", "index": 1, "sense": "river", "tokens": ["the", "bank", "rose"]},
    {"word": "banks", "index": 0, "sense": "money", "tokens": "banks closed"},
]
CHUNKS = "He PRP B-NP\nran VBD B-VP\nup IN B-PP\nthe DT B-NP\nhill NN I-NP\n. . O\n\nYes UH O\n"
SQUAD = {
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "Der Rhein ist 1.233 km lang. Er mündet in die Nordsee.",
                    "qas": [
                        {"id": "q1", "question": "Wie lang?", "answers": [{"text": "1.233 km", "answer_start": 14}]},
                        {"id": "q2", "question": "Wie tief?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ]
}
SETS = {
    "name": "flowers",
    "targets": {"flowers": ["aster", "wild rose"], "insects": ["ant", "bee", "gnat"]},
    "attributes": {"pleasant": ["love", "peace"], "unpleasant": ["abuse", "filth"]},
}
SCWS = "1\tBrazil\tn\tnut\tn\tIn <b> Brazil </b> rubber\ta <b>nut</b> for a <b> nut </b>\t1.1\t1.0\t1.2\n"
SCWS += "2\tsea\tn\tNew York\tn\tthe <b> sea </b>\tto <b> New York </b> .\t2\t2\t2\n"
USIM = "charge\t1\tthe charge rose\t0\tcharge it\t4.5\nadd\t0\tadd it\t0\tadd up\t1\n"


def write(folder, files: dict[str, object]):
    """Files of a folder: text, bytes, or what becomes JSON, a list JSON lines."""
    for name, content in files.items():
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        if isinstance(content, dict):
            content = json.dumps(content, indent=1)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def wrong(reader, path, *messages):
    """The reader refuses a file, and says all of that."""
    with pytest.raises(InputError) as told:
        reader(path)
    for message in messages:
        assert message in str(told.value)


def test_occurrences(tmp_path):
    """One file for each word; an occurrence without an id has the number of its line, small letters are as capital."""
    write(tmp_path, {"bank.jsonl": SENSES, "line.ndjson": SENSES, "README.md": "-", ".hidden.jsonl": "-"})
    bank, line = read_occurrences(tmp_path)
    assert (bank.name, line.name) == ("bank", "line")
    assert bank.occurrences[0] == ("a", "Bank", 1, "river", ["the", "bank", "rose"])
    assert bank.occurrences[1] == ("2", "banks", 0, "money", ["banks", "closed"])
    assert bank.digest == line.digest != digest(b"")
    assert read_occurrences(tmp_path / "bank.jsonl") == [bank]
    assert read_occurrences(str(tmp_path / "*.ndjson")) == [line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 3}, "line 2: index is 3 of 3 tokens; they are numbered from 0"),
        ({"index": -1}, "line 2: index is -1"),
        ({"index": "1"}, "line 2: index is '1'"),
        ({"index": True}, "line 2: index is True"),
        ({"index": 2}, "line 2: token 2 is 'rose', word is 'bank'"),
        ({"word": "shore"}, "line 2: token 1 is 'bank', word is 'shore'; index is the number"),
        ({"sense": 3}, "line 2: word is 'bank', sense 3; both must be texts"),
        ({"sense": " "}, "line 2: word is 'bank', sense ' '"),
        ({"sense": None, "word": 2}, "line 2: word is 2, sense None"),
        ({"tokens": ["the", "bank", "rose up"]}, "line 2: the token 'rose up' is empty or has white space"),
        ({"tokens": [1, 2]}, "line 2: tokens is [1, 2]"),
        ({"sense": "\ud800"}, "line 2 has '\\ud800', half of a character"),
        ({"sense": "money"}, "has one sense only, 'money'"),
        ({"id": "1"}, "line 1, too; give each occurrence its own, or none"),
    ],
)
def test_bad_occurrences(tmp_path, change, message):
    good = {"word": "bank", "index": 1, "sense": "money", "tokens": ["the", "bank", "rose"]}
    write(tmp_path, {"bank.jsonl": [good, good | {"sense": "river"} | change]})
    wrong(read_occurrences, tmp_path, "bank.jsonl", message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"word": "bank"', "line 2, is not JSON (Expecting ',' delimiter at column 16)"),
        ("bank\triver", "line 2, is not JSON"),
        ("[1]", "line 2, is [1]; a line is"),
        ('{"word": "bank", "tokens": ["bank"]}', "line 2, has no index and no sense"),
        ("[" * 100_000, "line 2, is not JSON (maximum recursion depth"),
    ],
)
def test_bad_lines_of_json(tmp_path, line, message):
    write(tmp_path, {"bank.jsonl": f"{json.dumps(SENSES[0])}\n{line}\n"})
    wrong(read_occurrences, tmp_path, "bank.jsonl", message)


def test_files_that_are_not_there(tmp_path):
    write(tmp_path, {"a.txt": "x", "twice/a.jsonl": SENSES, "twice/a.jsonl.gz": "-", "no/b.jsonl": "\n \n"})
    wrong(read_occurrences, tmp_path, "has no file that ends with .jsonl or .ndjson; give a file")
    wrong(read_occurrences, tmp_path / "b*", "b*, and none matches it; give a file, a glob, or a folder of .jsonl")
    wrong(read_occurrences, tmp_path / "twice", "twice has a twice (", "give one file of each name")
    wrong(read_occurrences, tmp_path / "no", "b.jsonl is empty")
    wrong(read_questions, tmp_path / "nothing.json", "there is no file", "nothing.json")
    wrong(read_questions, tmp_path, "is not a regular file")


def test_labelled(tmp_path):
    """Parts by the names of files; a file alone has none, and all is in `train`."""
    train = "pos\tgood  film\n\nneg\tbad\u2028film .\n"
    write(tmp_path, {"train.tsv": train, "test.tsv": "pos\ta\n\n", "notes.md": "-"})
    parts = read_labelled(tmp_path)
    assert parts.train == [Labelled("pos", ["good", "film"]), Labelled("neg", ["bad", "film", "."])]
    assert (parts.name, parts.dev, parts.test) == (tmp_path.name, None, [Labelled("pos", ["a"])])
    write(tmp_path, {"valid.txt": "very good\tb c"})
    wrong(read_labelled, tmp_path, "valid.txt, line 1: label 'very good' is on no line of", "train.tsv")
    write(tmp_path, {"valid.txt": " neg \tb c"})
    assert read_labelled(tmp_path).dev == [Labelled("neg", ["b", "c"])]
    assert read_labelled(tmp_path).digest != parts.digest
    alone = read_labelled(tmp_path / "train.tsv")
    assert (alone.name, alone.train, alone.dev, alone.test) == ("train", parts.train, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pos\tgood\nneg bad\n", "line 2, has 0 tabs; a line is label, tab, tokens between spaces: it has one"),
        ("pos\tgood\nneg\tbad\tfilm\n", "line 2, has 2 tabs"),
        ("pos\tgood\nneg\t \n", "line 2, has no tokens"),
        ("pos\tgood\n\n\tbad\n", "line 3, has no label"),
        ("sentence\tLabel\ngood\tpos\n", "line 1, has the names of columns, 'sentence\\tLabel'"),
        ("pos\tgood\npos\tbad\n", "has one label only, 'pos'"),
        ("".join(f"film {n}\tpos\n" for n in range(20)), "has 20 labels on 20 lines, such as 'film 0'"),
        ("pos\tgood\rneg\tbad\r", "ends its lines with carriage returns alone"),
        (b"pos\tgood\nneg\tm\xfcde\n", "line 2, is not UTF-8 (invalid start byte at byte 6); convert the file"),
        (b"\xff\xfep\0o\0s\0", "is text in UTF-16"),
        (gzip.compress(b"pos\tgood\n", mtime=0), "holds gzip data"),
        ("", "is empty"),
    ],
)
def test_bad_labelled(tmp_path, content, message):
    write(tmp_path, {"train.tsv": content, "test.tsv": "pos\ta\n"})
    wrong(read_labelled, tmp_path, "train.tsv", message)


def test_parts_that_are_not_there(tmp_path):
    """The error says what is there, and what should be."""
    train = "pos\tgood\nneg\tbad\n"
    wrong(read_labelled, write(tmp_path / "0", {"a/b": ""}), "0 has no train.tsv, but a; its files are train.tsv,")
    wrong(read_labelled, write(tmp_path / "1", {"train.tsv": train}), "1 has no test.tsv, but train.tsv")
    names = ("train.tsv", "train.txt", "test.tsv")
    wrong(read_labelled, write(tmp_path / "2", dict.fromkeys(names, train)), "2 has train.tsv and train.txt;")
    names = ("train.tsv", "dev.tsv", "validation.tsv", "test.tsv")
    wrong(read_labelled, write(tmp_path / "3", dict.fromkeys(names, train)), "3 has dev.tsv and validation.tsv;")


def test_tagged(tmp_path):
    """The token is first and its tag last; lines between sentences, -DOCSTART- and comments are no tokens."""
    train = f"-DOCSTART- -X- O\n\n# id = 3\n{CHUNKS}"
    write(tmp_path, {"train.conll": train, "valid.iob": CHUNKS, "test.txt": "# # B-NP"})
    parts = read_tagged(tmp_path)
    first = Tagged(["He", "ran", "up", "the", "hill", "."], ["B-NP", "B-VP", "B-PP", "B-NP", "I-NP", "O"])
    assert parts.train == parts.dev == [first, Tagged(["Yes"], ["O"])]
    assert parts.test == [Tagged(["#"], ["B-NP"])]
    assert (parts.name, parts.scheme, parts.irregular) == (tmp_path.name, "IOB2", 0)
    write(tmp_path, {"test.txt": "New York\tNN\tB-NP\n"})
    wrong(read_tagged, tmp_path, "test.txt, line 1, has the token 'New York', which is empty or has white space inside")


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-X I-X O B-Y B-Y I-Y B-X", "IOB2"),
        ("I-X I-X O I-Y B-Y I-Y I-X", "IOB1"),
        ("I-X I-X O I-Y", "IOB1"),
        ("B-X E-X O S-Y B-Y I-Y E-Y", "BIOES"),
        ("S-X O S-Y", "BIOES"),
        ("NN VB O", "plain"),
        ("B-NN VB", None),
        ("NN B-X", None),
        ("B I O", None),
        ("B_X I_X O", None),
        ("X-B X-I O", None),
        ("b-x i-x O", None),
        ("PRO-KS PRO-KS-REL N O", "plain"),
        ("B-X L-X O U-Y", None),
        ("B-X I-Y O I-X B-Y", None),
        ("B-X I-X S-Y O", None),
        ("B-X E-X O B-Y", None),
        ("S-X I-X", None),
        ("B-X O E-X", None),
        ("O O", None),
    ],
)
def test_schemes(tmp_path, tags, scheme):
    """They are told by the tags; those that no scheme allows are refused, with the line."""
    lines = "".join(f"w{number}\t{tag}\n" for number, tag in enumerate(tags.split()))
    write(tmp_path, {"train.conll": f"{lines}\n{lines}", "test.conll": lines})
    if scheme:
        assert read_tagged(tmp_path)[4:6] == (scheme, 0)
    else:
        wrong(read_tagged, tmp_path, "train.conll, line ")


def test_what_cannot_follow(tmp_path):
    """The error has the first line that each scheme does not allow; few such tags are counted, as in CoNLL-2002."""
    lines = [f"w{number} {tag}\n" for number, tag in enumerate(["B-X", "O", "I-X", "O"])]
    write(tmp_path, {"train.conll": "".join(lines), "test.conll": "a B-X\n"})
    problems = "line 3: I-X behind O cannot be in IOB2", "line 1: B-X behind O cannot be in IOB1"
    wrong(read_tagged, tmp_path, *problems, "as B-PER I-PER O, one of them in all files")
    write(tmp_path, {"train.conll": "".join(lines) + "b B-X\n\n" * 96})
    wrong(read_tagged, tmp_path, *problems[:1])
    write(tmp_path, {"train.conll": "".join(lines) + "b B-X\n\n" * 97})
    assert read_tagged(tmp_path)[4:6] == ("IOB2", 1)
    assert not allowed("BIOES", "B-X", "O")
    assert allowed("BIOES", "E-X", "S-X")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a B-X\nb\n", "line 2, has 1 column, the lines before 2; the token is first"),
        ("a\n", "line 1, has 1 column; the token is first"),
        ("a B-X\n\nb NN O\n", "line 3, has 3 columns, the lines before 2"),
        ("a\tB-X\n\tO\n", "line 2, has the token '', which is empty"),
        ("a\tB-X\nb\t\n", "line 2, has no tag"),
        ("1\tThe\tDET\n2\tcat\tNOUN\n3\tsat\tVERB\n", "line 1: the first column has no tokens, but 1 2 3; write"),
        ("d/0 The B-X\nd/0 cat I-X\nd/0 sat O\n", "line 1: the first column has no tokens, but d/0 d/0 d/0"),
        ("a B-X\n" * 10_001, "line 10001: a sentence of more than 10,000 tokens; are blank lines missing?"),
        ("-DOCSTART- -X- O\n", "has no tokens; give a token a line"),
        ("a B-X\nb NN\n", "line 2: the tag 'NN' is among those of spans"),
    ],
)
def test_bad_columns(tmp_path, content, message):
    write(tmp_path, {"train.conll": content, "test.conll": "a B-X\n"})
    wrong(read_tagged, tmp_path, "train.conll", message)


def test_columns_need_a_folder(tmp_path):
    write(tmp_path, {"train.conll": CHUNKS})
    advice = "give a folder with train.conll, test.conll and perhaps dev.conll"
    wrong(read_tagged, tmp_path / "train.conll", "train.conll is a file", advice)
    wrong(read_tagged, tmp_path / "nothing", "nothing is not there", advice)


def test_questions(tmp_path):
    """Characters are counted, not bytes; what nothing answers is left out."""
    in_numbers = json.dumps(SQUAD, indent=1).replace('"q1"', "17").replace('"q2"', "18")
    for content in (SQUAD, json.dumps(SQUAD), json.dumps(SQUAD, ensure_ascii=False), in_numbers):
        write(tmp_path, {"squad.json": content})
        found = read_questions(tmp_path / "squad.json")
        (paragraph,) = found.paragraphs
        (question,) = paragraph.questions
        assert (found.name, found.impossible) == ("squad", 1)
        assert question == ("17" if content is in_numbers else "q1", "Wie lang?", [(14, "1.233 km")])
        assert paragraph.context[14:].startswith("1.233 km")


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ('"answer_start": 14', '"answer_start": 15', ["line 10, question q1: the answer '1.23", "at character 15"]),
        ('"answer_start": 14', '"answer_start": -40', ["line 10, ", "not at character -40", "where none is"]),
        ('"answer_start": 14', '"answer_start": "14"', ["q1: the field answer_start is '14'", "a whole number"]),
        ('"text": "1.233 km"', '"text": ""', ["line 10, question q1: the answer '' is not at"]),
        ('"question": "Wie lang?"', '"query": ""', ["line 10, question q1: there is no field question"]),
        ('"is_impossible": true', '"x": 1', ["line 20, question q2, has no answer; give some, or mark it"]),
        ('"id": "q1"', '"number": 1', ["line 11, a question: there is no field id in {'number'"]),
        ('"context"', '"text"', ["line 7, a paragraph of article 1: there is no field context"]),
        ('"paragraphs"', '"text"', ["line 7, article 1: there is no field paragraphs"]),
        ('"data"', '"rows"', ["line 1: there is no field data in {'rows'", "it must be there, and be a list"]),
        ('"text": "1.233 km"', '"text" "1.233 km"', ["line 14, is not JSON (Expecting ':' delimiter at column 17)"]),
        ('"title": "Rivers"', '"title": "\\ud800"', ["line 1 has '\\ud800', half of a character"]),
    ],
)  # fmt: skip
def test_bad_questions(tmp_path, old, new, messages):
    content = json.dumps(SQUAD, indent=1)
    assert old in content
    write(tmp_path, {"squad.json": content.replace(old, new, 1)})
    wrong(read_questions, tmp_path / "squad.json", *messages)


def test_questions_without_answers(tmp_path):
    write(tmp_path, {"squad.json": {"data": []}, "list.json": "[]"})
    wrong(read_questions, tmp_path / "squad.json", "has no question that has an answer")
    wrong(read_questions, tmp_path / "list.json", "there is no field data in []")


def test_rated_pairs(tmp_path):
    """SCWS marks its words, of one or several tokens; the project's form numbers them."""
    write(tmp_path, {"ratings.txt": SCWS, "usim.tsv": USIM})
    scws, usim = read_ratings(tmp_path / "ratings.txt"), read_ratings(tmp_path / "usim.tsv")
    nut = InContext(["a", "nut", "for", "a", "nut"], 1, 2)
    assert scws.pairs[0] == Pair("1", InContext(["In", "Brazil", "rubber"], 1, 2), nut, 1.1)
    assert scws.pairs[1].second == InContext(["to", "New", "York", "."], 1, 3)
    charge = Pair("1", InContext(["the", "charge", "rose"], 1, 2), InContext(["charge", "it"], 0, 1), 4.5)
    assert (usim.name, usim.pairs[0], usim.pairs[1].rating) == ("usim", charge, 1.0)
    assert len({scws.digest, usim.digest}) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (USIM + "add\t2\tadd it\t0\tadd up\t1\n", "line 3: '2' is no number of one of 2 tokens; they are numbered"),
        (USIM + "add\t-1\tadd it\t0\tadd up\t1\n", "line 3: '-1' is no number"),
        (USIM + "add\t0\tadd it\t0\tadd up\tmuch\n", "line 3: the rating is 'much'; it must be a number"),
        (USIM + "add\t0\tadd it\t0\tadd up\tnan\n", "line 3: the rating is 'nan'"),
        (USIM + "add\t0\tadd it\t0\tadd up\n", "line 3, has 5 columns, the first line 6; ratings are"),
        ("a b c\n", "line 1, has 1 columns; ratings are lines of SCWS (8 columns or more), or word, index"),
        (USIM.replace("4.5", "1"), "all ratings are 1.0"),
        (SCWS.replace("<b> sea </b>", "sea"), "line 2: 'the sea' has no word between <b> and </b>"),
        (SCWS.replace("<b> sea </b>", "<b> </b> sea"), "line 2: 'the <b> </b> sea' has 1 words between"),
        (SCWS.replace("<b>nut", "<b>bolt"), "line 1: 'a <b>bolt</b> for a <b> nut </b>' has 2 words between"),
    ],
)  # fmt: skip
def test_bad_ratings(tmp_path, content, message):
    write(tmp_path, {"pairs.txt": content})
    wrong(read_ratings, tmp_path / "pairs.txt", "pairs.txt", message)


WIC = "board\tN\t2-0\tRoom and board .\tBoard at night\nran\tV\t0-1\tran home\the ran\n"


def test_wic(tmp_path):
    """Its parts lie together or in folders of their own; one without gold is left out."""
    files = {"train/train.data.txt": WIC, "train/train.gold.txt": "F\nT\n", "dev.data.txt": WIC, "dev.gold.txt": "F\nT"}
    parts = read_ratings(write(tmp_path / "WiC", files | {"test/test.data.txt": WIC}))
    first = Pair("1", InContext(["Room", "and", "board", "."], 2, 3), InContext(["Board", "at", "night"], 0, 1), 0.0)
    assert parts.train[0] == first
    assert [pair.rating for pair in parts.train] == [0.0, 1.0]
    assert (parts.name, parts.dev, parts.test) == ("WiC", parts.train, None)
    folder = write(tmp_path / "WiC", {"test/test.gold.txt": "T\nF"})
    assert [pair.rating for pair in read_ratings(folder).test] == [1.0, 0.0]
    for changed, messages in (
        ({"dev.gold.txt": "F\nT\nT"}, ["dev.data.txt has 2 lines, ", "dev.gold.txt 3; they must be as many"]),
        ({"dev.gold.txt": "F\n1"}, ["dev.gold.txt, line 2, is '1'; it must be T or F"]),
        ({"dev.data.txt": WIC.replace("0-1", "0-2")}, ["dev.data.txt, line 2: '2' is no number of one of 2 tokens"]),
        ({"dev.data.txt": WIC.replace("0-1", "0")}, ["dev.data.txt, line 2: '0' must be i-j"]),
        ({"dev.data.txt": WIC.replace("\tV", "")}, ["dev.data.txt, line 2, has 4 columns; a line of WiC is word,"]),
    ):
        wrong(read_ratings, write(tmp_path / "WiC", files | changed), *messages)
    wrong(
        read_ratings, write(tmp_path / "test only", {"test.data.txt": WIC, "test.gold.txt": "T\nF"}), "has test of WiC"
    )
    wrong(read_ratings, write(tmp_path / "nothing", {"a": ""}), "nothing has no part of WiC; give train.data.txt and")


def test_word_sets(tmp_path):
    """Sentences for all sets, or for each; there may be none, nor pairs."""
    files = {"plain": SETS, "all": SETS | {"templates": ["This is {word} ."], "pairs": [["he", "she"]]}}
    named = {name: [f"{name} : {{word}}"] for name in ("flowers", "insects", "pleasant", "unpleasant")}
    files |= {"each": SETS | {"templates": named}}
    write(tmp_path, {f"{name}.json": content for name, content in files.items()})
    for_all, for_each, plain = read_word_sets(tmp_path)
    assert (plain.name, plain.targets, plain.attributes) == ("flowers", SETS["targets"], SETS["attributes"])
    assert (plain.templates, plain.pairs) == ({}, [])
    assert for_all.templates == {key: ["This is {word} ."] for key in named}
    assert for_all.pairs == [("he", "she")]
    assert for_each.templates == named
    assert len({sets.digest for sets in (for_all, for_each, plain)}) == 3
    assert read_word_sets(tmp_path / "plain.json") == [plain]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "line 2: the field name is 3"),
        ({"attributes": []}, "line 14: the field attributes is []"),
        ({"target": {}}, "line 24: 'target' is not known; there are name, targets, attributes, templates and pairs"),
        ({"targets": {"a": ["b", "c"]}}, "line 3: targets has 1 sets; it must have two"),
        ({"targets": {"a": ["b", "c"], "d": "e f"}}, "line 8: the set d is 'e f'; it must be a list of two or more"),
        ({"targets": {"a": ["b", "c"], "d": ["e"]}}, "line 8: the set d is ['e']; it must be a list of two or more"),
        ({"targets": {"a": ["b", "c"], "d": ["e", 1]}}, "line 8: the set d has 1; it must have words"),
        ({"targets": {"a": ["b", "c"], "d": ["e", " "]}}, "line 8: the set d has ' '; it must have words"),
        ({"targets": {"a": ["b", "c"], "d": ["e", "e"]}}, "line 8: the set d has 'e' twice"),
        ({"targets": {"a": ["b", "c"], "d": ["é", "c"]}}, "line 6: 'c' is in both sets of targets"),
        (
            {"templates": {"a": ["{word}"]}},
            "line 24: templates is ['a'], the sets are flowers, insects, pleasant, ",
        ),
        ({"templates": "{word}"}, "line 24: templates is '{word}', the sets are"),
        ({"templates": []}, "line 24: [] is no list of sentences"),
        ({"templates": ["This is {word} .", "This is {word}."]}, "line 26: 'This is {word}.' has not one token {word}"),
        ({"templates": [1]}, "1 has not one token {word}"),
        ({"pairs": [["he"]]}, "line 24: ['he'] is no pair of words"),
        ({"pairs": {"he": "she"}}, "line 24: {'he': 'she'} is no pair of words"),
        ({"pairs": [["he", ""]]}, "line 24: ['he', ''] is no pair of words"),
    ],
)
def test_bad_word_sets(tmp_path, change, message):
    write(tmp_path, {"sets.json": SETS | change})
    wrong(read_word_sets, tmp_path / "sets.json", "sets.json", message)


def test_text(tmp_path):
    """Lines without tokens are left out; other forms of text are read as by all commands."""
    write(tmp_path, {"a.txt": "a b\n\n c\n", "b.jsonl": [{"tokens": ["a", "b"]}, {"tokens": "c"}], "empty.txt": "\n"})
    text = read_text(tmp_path / "a.txt")
    assert text[:2] == ("a", [["a", "b"], ["c"]])
    assert read_text(tmp_path / "b.jsonl")[1:] == text[1:]
    wrong(read_text, tmp_path / "empty.txt", "empty.txt has no tokens")
    wrong(read_text, tmp_path / "nothing.txt", "the task: there is no file")


@pytest.mark.parametrize("ends", ["\n", "\r\n", " \n\n \n"], ids=["lines", "carriage returns", "blank lines"])
@pytest.mark.parametrize("compress", [None, gzip, bz2], ids=["plain", "gzip", "bzip2"])
def test_as_users_files_are(tmp_path, ends, compress):
    """A byte order mark, carriage returns, more blank lines, no line feed at the end, compression."""
    rows = lambda lines: "\ufeff" + ends.join(lines)
    columns = ends[-1 - ("\r" in ends) :].join(["\ufeffa\tB-X", "b\tI-X", "", "c\tO"]) + ends
    files = {
        "train.tsv": rows(["pos\tä b", "neg\tc"]),
        "test.tsv": rows(["neg\tc"]),
        "train.conll": columns,
        "test.conll": columns,
        "senses.jsonl": rows(map(json.dumps, SENSES)),
        "squad.json": rows(json.dumps(SQUAD, indent=1).split("\n")),
        "sets.json": rows(json.dumps(SETS, indent=1).split("\n")),
        "scws": rows(SCWS.split("\n")),
    }
    suffix = {None: "", gzip: ".gz", bz2: ".bz2"}[compress]
    change = compress.compress if compress else bytes
    write(tmp_path, {name + suffix: change(content.encode()) for name, content in files.items()})
    assert read_labelled(tmp_path).train == [Labelled("pos", ["ä", "b"]), Labelled("neg", ["c"])]
    assert read_tagged(tmp_path).train == [Tagged(["a", "b"], ["B-X", "I-X"]), Tagged(["c"], ["O"])]
    assert [occurrence.index for occurrence in read_occurrences(tmp_path)[0].occurrences] == [1, 0]
    assert read_questions(tmp_path / f"squad.json{suffix}").paragraphs[0].questions[0].answers == [(14, "1.233 km")]
    assert read_word_sets(tmp_path / f"sets.json{suffix}")[0].targets == SETS["targets"]
    assert read_ratings(tmp_path / f"scws{suffix}").pairs[1].first == InContext(["the", "sea"], 1, 2)


def test_large_files(tmp_path, monkeypatch):
    """JSON may be one long line; a small compressed file of an endless one is refused."""
    write(tmp_path, {"squad.json": json.dumps(SQUAD | {"note": "x" * 2**24})})
    assert len(read_questions(tmp_path / "squad.json").paragraphs) == 1
    monkeypatch.setattr(formats, "LARGEST", 2**20)
    write(tmp_path, {"squad.json.gz": gzip.compress(b" " * 2**21)})
    wrong(read_questions, tmp_path / "squad.json.gz", "squad.json.gz holds more than")


def test_names(tmp_path, monkeypatch):
    """What tells a file's form is no part of its name; a folder's is that of the folder that "." is."""
    monkeypatch.chdir(tmp_path)
    names = {"a/hard.jsonl": "hard", "b.tsv.gz": "b", "glove.6B.50d.txt": "glove.6B.50d", ".conll": ".conll"}
    names |= {"v1.5/": "v1.5", "gs://bucket/x/y.json": "y", ".": tmp_path.name, "hf://OWNER/NAME": "NAME"}
    assert {path: stem(path) for path in names} == names


def test_digests():
    """Parts cannot be taken for others of the same bytes."""
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(b"a") == digest(b"a") != digest(b"a", b"")
    assert len(digest()) == 32


def test_shared_data():
    """The files that the tasks are measured on; CoNLL-2002 has three spans that begin with I."""
    folder = GOLDEN.parent / "tasks"
    if not folder.is_dir():
        pytest.skip(f"no files of tasks at {folder}")
    assert [len(word.occurrences) for word in read_occurrences(folder / "word_sense")] == [4333, 2368, 4146]
    sentiment = read_labelled(folder / "sentiment")
    assert (len(sentiment.train), len(sentiment.dev), len(sentiment.test)) == (8662, 1000, 1000)
    spanish = read_tagged(folder / "ner_spanish")
    assert (len(spanish.train), len(spanish.test), *spanish[4:6]) == (8323, 1517, "IOB2", 3)
