"""Files of tasks: labelled sentences, tags in columns, questions, ratings, sets of words, text.

A reader checks its whole file before it returns: of what is wrong, the error says the file and the line. Files are
UTF-8 and may be compressed (.gz, .bz2, .xz, .zst), as those of text; a byte order mark and carriage returns at the ends
of lines are read as nothing. Tokens are numbered from 0.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from etils import epath

from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path, is_remote, matching
from elmo_jax.sources import (
    COMMENT,
    COMPRESSIONS,
    TextFile,
    TextForm,
    decode,
    read_input,
    tokens_of,
)

Record = TypeVar("Record")
Scheme = Literal["IOB1", "IOB2", "BIOES", "plain"]

# How files of a form end, .gz and the like taken off.
JSONL = (".jsonl", ".ndjson")
TSV = (".tsv", ".txt")
CONLL = (".conll", ".iob", ".iob2", ".bio", ".txt")
JSON = (".json",)
FORMS = {*COMPRESSIONS, *JSONL, *TSV, *CONLL, *JSON, ".vec"}
PARTS = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
HEADER = {"label", "labels", "class", "category", "polarity", "sentiment", "sentence", "text", "tokens"}
LARGEST = 2**30  # bytes of a file that is read whole
MOST_TOKENS = 10_000  # of a sentence in columns
FEW = 3  # tokens by which a column is known to be another
SPAN = re.compile(r"[BIES]-.+")
LIKE_SPAN = re.compile(r"[BIESLUM][_:./|].+|[a-z]-.+|.+[-_:./|][BIESLUM]")
IRREGULAR = 0.01  # part of the tags in spans that may not follow the scheme: CoNLL-2002 has some
OUTSIDE = "O"  # the tag of what is in no span
MARKED = re.compile(r"<b>(.*?)</b>", re.IGNORECASE)
TEMPLATE_WORD = "{word}"  # of a template


def digest(*parts: bytes) -> str:
    """Of what was read, for `Piece.decides`."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:32]


class Occurrence(NamedTuple):
    """A word in a sentence, and in which sense: tokens[index] is the word."""

    id: str
    word: str
    index: int
    sense: str
    tokens: list[str]


class WordOccurrences(NamedTuple):
    """The occurrences of one word; `name` is that of its file."""

    name: str
    occurrences: list[Occurrence]
    digest: str


class Labelled(NamedTuple):
    """A sentence and its label."""

    label: str
    tokens: list[str]


class Tagged(NamedTuple):
    """A sentence and a tag of each token."""

    tokens: list[str]
    tags: list[str]


class InContext(NamedTuple):
    """Words in a sentence: tokens[begin:end]."""

    tokens: list[str]
    begin: int
    end: int


class Pair(NamedTuple):
    """Words in two contexts, and how alike people say that they are; of WiC 1 for the same sense, 0 for another."""

    id: str
    first: InContext
    second: InContext
    rating: float


class Ratings(NamedTuple):
    """Rated pairs of SCWS or of the project's own form (USim)."""

    name: str
    pairs: list[Pair]
    digest: str


class Parts(NamedTuple, Generic[Record]):
    """Records to learn from, to choose by and to measure on; dev and test are None where there are none."""

    name: str
    train: list[Record]
    dev: list[Record] | None
    test: list[Record] | None
    digest: str


class TaggedParts(NamedTuple):
    """`Parts` of tagged sentences, how their tags write spans, and how many tags do not follow that."""

    name: str
    train: list[Tagged]
    dev: list[Tagged] | None
    test: list[Tagged]
    scheme: Scheme
    irregular: int
    digest: str


class Question(NamedTuple):
    """A question and its answers: (number of the character of the context where it begins, text)."""

    id: str
    text: str
    answers: list[tuple[int, str]]


class Paragraph(NamedTuple):
    """A text, and questions that it answers."""

    context: str
    questions: list[Question]


class Questions(NamedTuple):
    """Paragraphs with questions; `impossible` ones, that nothing answers, were left out."""

    name: str
    paragraphs: list[Paragraph]
    impossible: int
    digest: str


class WordSets(NamedTuple):
    """Two sets of target words and two of attributes (WEAT), sentences to put them in (SEAT), pairs (debiasing).

    `templates` has for each set's name its sentences, in which {word} stands for the word; none: an empty dict.
    """

    name: str
    targets: dict[str, list[str]]
    attributes: dict[str, list[str]]
    templates: dict[str, list[str]]
    pairs: list[tuple[str, str]]
    digest: str


class Text(NamedTuple):
    """Sentences with at least one token each."""

    name: str
    sentences: list[list[str]]
    digest: str


class Content(NamedTuple):
    """A file as it is read: where it is, its bytes (decompressed), its lines without their ends."""

    where: str
    content: bytes
    lines: list[str]

    def numbered(self) -> Iterator[tuple[str, str]]:
        """Lines that are not blank, each with the place that an error names."""
        for number, line in enumerate(self.lines, start=1):
            if line.strip():
                yield f"{self.where}, line {number}", line


def stem(path: str | os.PathLike) -> str:
    """What a file, folder or model is called in tables: the end of its path without what tells its form."""
    given = os.fspath(path)
    whole = name = (
        given.rstrip("/").rpartition("/")[2] if is_remote(given) else os.path.basename(os.path.abspath(given))
    )
    while "." in name[1:] and name[name.rindex(".") :].lower() in FORMS:
        name = name[: name.rindex(".")]
    return name or whole


def source_of(path: str | os.PathLike) -> TextFile:
    """A text file that is there."""
    source = TextFile(as_path(path), TextForm("lines"), guessed=False)
    if not source.path.exists():
        raise InputError(f"there is no file {os.fspath(path)}")
    if not is_remote(path) and not os.path.isfile(path):
        raise InputError(f"{os.fspath(path)} is not a regular file")
    return source


def read(path: str | os.PathLike) -> Content:
    """A whole text file."""
    source, whole = source_of(path), bytearray()
    with source.lines(0) as (stream, _):
        for part in stream:
            whole += part
            if len(whole) > LARGEST:
                raise InputError(f"{source.name} holds more than {LARGEST >> 30} GiB; give a part of it")
    content = bytes(whole)
    lines = [
        decode(line, source.name, number).rstrip("\r") for number, line in enumerate(content.split(b"\n"), start=1)
    ]
    if not any(line.strip() for line in lines):
        raise InputError(f"{source.name} is empty; give a file with something in it")
    if len(lines) == 1 and "\r" in lines[0]:
        raise InputError(f"{source.name} ends its lines with carriage returns alone; convert them to line feeds")
    return Content(source.name, content, lines)


def ends_with(path: epath.Path, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends so, the end of a compression taken off."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.endswith(tuple(suffixes))


def files_in(folder: epath.Path, suffixes: Sequence[str]) -> list[epath.Path]:
    """A folder's files whose names end so, sorted, without hidden ones."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and ends_with(path, suffixes)]
    return sorted((path for path in files if not path.is_dir()), key=os.fspath)


def several(path: str | os.PathLike, suffixes: Sequence[str]) -> list[epath.Path]:
    """The files that a path names: itself, those that it matches as a glob, or those in the folder; none twice."""
    given = as_path(path)
    if given.is_dir():
        files = files_in(given, suffixes)
        problem = f"the folder {given} has no file that ends with {' or '.join(suffixes)}"
    else:
        files = [given] if given.exists() else matching(os.fspath(path))
        problem = f"there is no file {os.fspath(path)}, and none matches it"
    if not files:
        raise InputError(f"{problem}; give a file, a glob, or a folder of {suffixes[0]} files")
    names = Counter(map(stem, files))
    if twice := [name for name in names if names[name] > 1]:
        which = listed([file.name for file in files if stem(file) == twice[0]], ", ")
        raise InputError(f"{os.fspath(path)} has {twice[0]} twice ({which}); give one file of each name")
    return files


def parts_of(folder: epath.Path, suffixes: Sequence[str]) -> dict[str, epath.Path]:
    """The files of a folder to learn from, to choose by and to measure on: train.*, test.*, and perhaps dev.*."""
    accepted = f"its files are train{suffixes[0]}, test{suffixes[0]} and perhaps dev{suffixes[0]}"
    files, found = files_in(folder, suffixes), {}
    for part, names in PARTS.items():
        named = [path for path in files if stem(path).lower() in names]
        if len(named) > 1:
            raise InputError(f"{folder} has {listed([path.name for path in named], ' and ')}; {accepted}: leave one")
        if named:
            found[part] = named[0]
        elif part != "dev":
            has = listed([path.name for path in sorted(folder.iterdir())], ", ") or "nothing"
            raise InputError(f"{folder} has no {part}{suffixes[0]}, but {brief(has)}; {accepted}")
    return found


def parsed(text: str, place: Callable[[int], str], accepted: str) -> Any:
    """The value that JSON writes; `place` says where its lines are."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = repr(error.object[error.start])
        raise InputError(
            f"{place(1)} has {half}, half of a character (a lone surrogate), which is no text; take it out"
        ) from None
    except (ValueError, RecursionError) as error:
        wrong = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else brief(error)
        raise InputError(f"{place(getattr(error, 'lineno', 1))}, is not JSON ({wrong}); {accepted}") from None
    return value


def parsed_whole(content: Content, accepted: str) -> Any:
    """The value that a JSON file holds."""
    return parsed("\n".join(content.lines), lambda line: f"{content.where}, line {line}", accepted)


def line_of(content: Content, value: Any) -> str:
    """Where a value of a JSON file stands: the first line that has it."""
    forms = json.dumps(value), json.dumps(value, ensure_ascii=False)
    numbers = (number for number, line in enumerate(content.lines, start=1) if any(form in line for form in forms))
    return f"{content.where}, line {next(numbers, 1)}"


def line_within(content: Content, value: Any) -> str:
    """Where a part of a JSON file stands: the line of its longest text, which others hardly have."""
    texts, rest = [""], [value]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict | list):
            rest += part.values() if isinstance(part, dict) else part
    return line_of(content, max(texts, key=len))


def read_occurrences(path: str | os.PathLike) -> list[WordOccurrences]:
    """JSON lines {"id", "word", "index", "sense", "tokens"}: a file for each word; a file, glob or folder of .jsonl.

    tokens[index] is the word (in small or capital letters); without an id it is the number of the line.
    """
    words = []
    for file in several(path, JSONL):
        content = read(file)
        occurrences: list[Occurrence] = []
        places: dict[str, str] = {}
        for where, line in content.numbered():
            occurrences.append(_occurrence(where, line))
            name = occurrences[-1].id
            if name in places:
                raise InputError(
                    f"{where}: id {brief(repr(name))} is that of {places[name]}, too; give each occurrence its own, "
                    "or none"
                )
            places[name] = where
        if len({occurrence.sense for occurrence in occurrences}) < 2:
            raise InputError(
                f"{content.where} has one sense only, {brief(repr(occurrences[0].sense))}; at least two are told apart"
            )
        words.append(WordOccurrences(stem(file), occurrences, digest(content.content)))
    return words


def _occurrence(where: str, line: str) -> Occurrence:
    accepted = 'a line is {"id": .., "word": .., "index": number of the token, from 0, "sense": .., "tokens": [..]}'
    values = parsed(line, lambda _: where, accepted)
    if not isinstance(values, dict):
        raise InputError(f"{where}, is {brief(repr(values))}; {accepted}")
    if missing := [name for name in ("word", "index", "sense", "tokens") if name not in values]:
        raise InputError(f"{where}, has no {' and no '.join(missing)}; {accepted}")
    word, index, sense = values["word"], values["index"], values["sense"]
    tokens = tokens_of(values["tokens"], where, "tokens")
    if not isinstance(word, str) or not isinstance(sense, str) or not sense.strip():
        raise InputError(f"{where}: word is {brief(repr(word))}, sense {brief(repr(sense))}; both must be texts")
    if type(index) is not int or not 0 <= index < len(tokens):
        raise InputError(f"{where}: index is {brief(repr(index))} of {len(tokens)} tokens; they are numbered from 0")
    if tokens[index].lower() != word.lower():
        raise InputError(
            f"{where}: token {index} is {brief(repr(tokens[index]))}, word is {brief(repr(word))}; index is the "
            "number of the word's token, from 0, and word is written as there"
        )
    return Occurrence(str(values.get("id", number_of(where))), word, index, sense, tokens)


def read_labelled(path: str | os.PathLike) -> Parts[Labelled]:
    """Lines of a label, a tab, and tokens between spaces: a folder with train.tsv, test.tsv and perhaps dev.tsv.

    Or one file, which has no parts: it is all in `train`.
    """
    given = as_path(path)
    files = parts_of(given, TSV) if given.is_dir() else {"train": given}
    contents = {part: read(file) for part, file in files.items()}
    records = {part: list(_labelled(content)) for part, content in contents.items()}
    known = Counter(record.label for record in records["train"])
    train, examples = contents["train"], len(records["train"])
    if len(known) == 1:
        raise InputError(f"{train.where} has one label only, {brief(repr(min(known)))}; at least two are told apart")
    if examples >= 20 and len(known) > examples / 2:
        raise InputError(
            f"{train.where} has {len(known):,} labels on {examples:,} lines, such as {brief(repr(min(known)))}; a line "
            "is label, tab, tokens: are the columns the other way round?"
        )
    for part, content in contents.items():
        for (where, _), record in zip(content.numbered(), records[part], strict=True):
            if record.label not in known:
                raise InputError(
                    f"{where}: label {brief(repr(record.label))} is on no line of {train.where}; what is measured must "
                    "be learned: mend the label, or leave the line out"
                )
    whole = digest(*(content.content for content in contents.values()))
    return Parts(stem(path), records["train"], records.get("dev"), records.get("test"), whole)


def _labelled(content: Content) -> Iterator[Labelled]:
    accepted = "a line is label, tab, tokens between spaces"
    for number, (where, line) in enumerate(content.numbered()):
        parts = line.split("\t")
        if len(parts) != 2:
            raise InputError(f"{where}, has {len(parts) - 1} tabs; {accepted}: it has one")
        label, tokens = parts[0].strip(), parts[1].split()
        if not label or not tokens:
            raise InputError(f"{where}, has no {'tokens' if label else 'label'}; {accepted}")
        if number == 0 and {part.strip().lower() for part in parts} <= HEADER:
            raise InputError(f"{where}, has the names of columns, {brief(repr(line))}; {accepted}: take it out")
        yield Labelled(label, tokens)


def read_tagged(path: str | os.PathLike) -> TaggedParts:
    """Columns as in CoNLL's tasks: the token first, its tag last, blank lines between sentences.

    A folder with train.conll, test.conll and perhaps dev.conll. Columns are separated by tabs, or where a line has none
    by white space; all lines of a file have as many. -DOCSTART- and comments "# name = value" are left out. Tags are
    spans' (IOB1, IOB2 or BIOES; O is in none), or plain, a class of each token.
    """
    folder = as_path(path)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "is not there"
        raise InputError(
            f"{os.fspath(path)} {problem}; give a folder with train.conll, test.conll and perhaps dev.conll"
        )
    contents = {part: read(file) for part, file in parts_of(folder, CONLL).items()}
    tagged = {part: _columns(content) for part, content in contents.items()}
    scheme, irregular = scheme_of([sentence for sentences in tagged.values() for sentence in sentences])
    records = {part: [Tagged(*sentence[:2]) for sentence in sentences] for part, sentences in tagged.items()}
    whole = digest(*(content.content for content in contents.values()))
    return TaggedParts(stem(path), records["train"], records.get("dev"), records["test"], scheme, irregular, whole)


class Columns(NamedTuple):
    """A sentence in columns: tokens, tags, and the file and the lines where they are."""

    tokens: list[str]
    tags: list[str]
    file: str
    lines: list[int]

    def place(self, token: int) -> str:
        """Where a token is; behind the last one, where that is."""
        return f"{self.file}, line {self.lines[min(token, len(self.lines) - 1)]}"


def _columns(content: Content) -> list[Columns]:
    """The sentences of a file in columns."""
    accepted = "the token is first, its tag last, in as many columns on every line"
    sentences, width = [Columns([], [], content.where, [])], 0
    for number, line in enumerate(content.lines, start=1):
        sentence, where = sentences[-1], f"{content.where}, line {number}"
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence.tokens:
                sentences.append(Columns([], [], content.where, []))
            continue
        if line[0] == "#" and COMMENT.match(line):
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) < 2 or (width and len(parts) != width):
            columns = "1 column" if len(parts) == 1 else f"{len(parts)} columns"
            raise InputError(f"{where}, has {columns}{f', the lines before {width}' if width else ''}; {accepted}")
        token, tag, width = parts[0], parts[-1].strip(), len(parts)
        if not tag or token.split() != [token]:
            what = "no tag" if not tag else f"the token {brief(repr(token))}, which is empty or has white space inside"
            raise InputError(f"{where}, has {what}; {accepted}")
        if len(sentence.tokens) == MOST_TOKENS:
            raise InputError(f"{where}: a sentence of more than {MOST_TOKENS:,} tokens; are blank lines missing?")
        sentence.tokens.append(token)
        sentence.tags.append(tag)
        sentence.lines.append(number)
    sentences = [sentence for sentence in sentences if sentence.tokens]
    _check_first_column(content, sentences)
    return sentences


def _check_first_column(content: Content, sentences: Sequence[Columns]) -> None:
    """Refuses files whose first column has the numbers of tokens, as in CoNLL-U, or the name of a document."""
    if not sentences:
        raise InputError(f"{content.where} has no tokens; give a token a line, with its tag last")
    counted = all(token == str(number) for tokens, *_ in sentences for number, token in enumerate(tokens, start=1))
    tokens = [token for sentence in sentences for token in sentence.tokens[:FEW]]
    if len(tokens) >= FEW and (counted or len(set(tokens)) == 1):
        raise InputError(
            f"{sentences[0].place(0)}: the first column has no tokens, but {brief(' '.join(tokens[:FEW]))}; write the "
            "token first and its tag last"
        )


def scheme_of(sentences: Sequence[Columns]) -> tuple[Scheme, int]:
    """How tags write spans, and how many do not follow it; refuses files where those are many.

    IOB2: every span begins with B. IOB1: a span begins with B only behind one of its type, else with I (Ramshaw and
    Marcus 1995). BIOES: as IOB2, a span's last token has E, one of a single token S.
    """
    places: dict[str, str] = {}
    for sentence in sentences:
        for number, tag in enumerate(sentence.tags):
            if tag not in places:
                places[tag] = sentence.place(number)
    if len(places) == 1:
        raise InputError(f"{min(places.values())}: all tags are {brief(min(places))}; at least two are told apart")
    kinds = {tag[0] for tag in places if SPAN.fullmatch(tag)}
    others = [tag for tag in places if tag != OUTSIDE and not SPAN.fullmatch(tag)]
    accepted = "spans are written in IOB1, IOB2 or BIOES, as B-PER I-PER O"
    if not kinds and {"B", "I"} <= places.keys():
        raise InputError(f"{places['B']}: the tags B and I have no type; {accepted}")
    if not kinds and OUTSIDE in places and all(map(LIKE_SPAN.fullmatch, others)):
        raise InputError(f"{places[others[0]]}: the tag {brief(repr(others[0]))} is written otherwise; {accepted}")
    if not kinds:
        return "plain", 0
    if others:
        raise InputError(f"{places[others[0]]}: the tag {brief(repr(others[0]))} is among those of spans; {accepted}")
    inside = sum(tag != OUTSIDE for sentence in sentences for tag in sentence.tags)
    candidates: tuple[Scheme, ...] = ("BIOES",) if kinds & {"E", "S"} else ("IOB2", "IOB1")
    wrong = {scheme: _not_allowed(sentences, scheme) for scheme in candidates}
    scheme = min(candidates, key=lambda scheme: len(wrong[scheme]))
    if len(wrong[scheme]) > IRREGULAR * inside:
        found = []
        for candidate, ((sentence, number), *_) in wrong.items():
            before, tag = [OUTSIDE, *sentence.tags, OUTSIDE][number : number + 2]
            found.append(f"{sentence.place(number)}: {brief(tag)} behind {brief(before)} cannot be in {candidate}")
        raise InputError(f"{'; '.join(found)}; {accepted}, one of them in all files")
    return scheme, len(wrong[scheme])


def _not_allowed(sentences: Sequence[Columns], scheme: Scheme) -> list[tuple[Columns, int]]:
    """Tags that a scheme does not allow behind the tag before: sentences, and numbers of tokens in them."""
    return [
        (sentence, number)
        for sentence in sentences
        for number, (before, tag) in enumerate(itertools.pairwise([OUTSIDE, *sentence.tags, OUTSIDE]))
        if not allowed(scheme, before, tag)
    ]


def allowed(scheme: Scheme, before: str, tag: str) -> bool:
    """Whether a tag may follow another; O stands before and behind a sentence."""
    same = before[2:] == tag[2:] and before[0] in "BI"  # a span of the same type has begun
    if scheme == "BIOES":
        return (same and tag[0] in "IE") if before[0] in "BI" else tag[0] in "OBS"
    if scheme == "IOB2":
        return tag[0] != "I" or same
    return tag[0] != "B" or same


def read_questions(path: str | os.PathLike) -> Questions:
    """A file of SQuAD, version 1.1 or 2: {"data": [{"paragraphs": [{"context", "qas": [..]}]}]}.

    A question is {"id", "question", "answers": [{"text", "answer_start"}]}; those that are impossible are left out.
    """
    content = read(path)
    whole = parsed_whole(content, "give a file of SQuAD")
    paragraphs, impossible = [], 0
    for number, article in enumerate(_member(whole, "data", list, lambda: line_of(content, "data")), start=1):
        of_article = lambda article=article, number=number: f"{line_within(content, article)}, article {number}"
        for paragraph in _member(article, "paragraphs", list, of_article):
            of_paragraph = lambda paragraph=paragraph, number=number: (
                f"{line_within(content, paragraph)}, a paragraph of article {number}"
            )
            context, questions = _member(paragraph, "context", str, of_paragraph), []
            for given in _member(paragraph, "qas", list, of_paragraph):
                if isinstance(given, dict) and given.get("is_impossible"):
                    impossible += 1
                else:
                    questions.append(_question(content, given, context))
            paragraphs.append(Paragraph(context, questions))
    if not any(paragraph.questions for paragraph in paragraphs):
        raise InputError(f"{content.where} has no question that has an answer; give a file of SQuAD with some")
    return Questions(stem(path), paragraphs, impossible, digest(content.content))


def _member(value: Any, name: str, kind: type, where: Callable[[], str]) -> Any:
    """A field of an object of JSON, of the type that it must have."""
    has = isinstance(value, dict) and name in value
    if has and type(value[name]) is kind:
        return value[name]
    found = f"the field {name} is {brief(repr(value[name]), 80)}" if has else f"there is no field {name}"
    needed = {str: "a text", list: "a list", dict: "an object", int: "a whole number"}[kind]
    raise InputError(f"{where()}: {found} in {brief(repr(value), 80)}; it must be there, and be {needed}")


def _question(content: Content, value: Any, context: str) -> Question:
    """A question with its answers, each of which must be where it says."""
    name = value.get("id") if isinstance(value, dict) else None
    where = lambda: f"{line_within(content, value)}, a question"
    if type(name) is not int:
        name = _member(value, "id", str, where)
        where = lambda: f"{line_of(content, name)}, question {brief(name, 80)}"
    question, answers = _member(value, "question", str, where), []
    for answer in _member(value, "answers", list, where):
        begin, text = _member(answer, "answer_start", int, where), _member(answer, "text", str, where)
        end = begin + len(text)
        if not text or begin < 0 or context[begin:end] != text:
            there = "none" if not text or begin < 0 else repr(context[begin:end])
            raise InputError(
                f"{where()}: the answer {brief(repr(text), 80)} is not at character {begin} of its context, where "
                f"{brief(there, 80)} is; answer_start counts characters, from 0"
            )
        answers.append((begin, text))
    if not answers:
        raise InputError(f"{where()}, has no answer; give some, or mark it is_impossible")
    return Question(str(name), question, answers)


def read_ratings(path: str | os.PathLike) -> Ratings | Parts[Pair]:
    """Pairs of words in context with what people say of them, in one of three forms, without a line of names.

    WiC      a folder with train.data.txt, train.gold.txt, .., each part perhaps in a folder of its own: word, part of
             speech, i-j, two texts, between tabs, tokens i and j of them; gold T or F
    SCWS     ratings.txt: number, word, part of speech, word, part of speech, two texts with the words between <b> and
             </b>, mean rating, the ratings
    USim     in the project's form: word, number of its token, tokens, number of its token, tokens, mean rating
    """
    if as_path(path).is_dir():
        return _read_wic(as_path(path))
    content = read(path)
    rows = [(where, line.split("\t")) for where, line in content.numbered()]
    accepted = (
        "ratings are lines of SCWS (8 columns or more), or word, index, tokens, index, tokens, rating (6 columns), "
        "between tabs, or WiC (a folder)"
    )
    width = len(rows[0][1])
    if width != 6 and width < 8:
        raise InputError(f"{rows[0][0]}, has {width} columns; {accepted}")
    pairs = []
    for where, row in rows:
        if len(row) != width:
            raise InputError(f"{where}, has {len(row)} columns, the first line {width}; {accepted}")
        pairs.append(_usim(where, row) if width == 6 else _scws(where, row))
    if len({pair.rating for pair in pairs}) < 2:
        raise InputError(f"{content.where}: all ratings are {pairs[0].rating}; at least two are needed to compare")
    return Ratings(stem(path), pairs, digest(content.content))


def _rating(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: the rating is {brief(repr(text))}; it must be a number")
    return value


def _scws(where: str, row: Sequence[str]) -> Pair:
    first, second = (_marked(where, text) for text in row[5:7])
    return Pair(row[0], first, second, _rating(where, row[7]))


def _marked(where: str, text: str) -> InContext:
    """A text with a word between <b> and </b>; of several such it is the first, all must be the same."""
    words = [match.split() for match in MARKED.findall(text)]
    if not words or not words[0] or any(other != words[0] for other in words):
        found = f"{len(words)} words between <b> and </b>: {brief(words)}" if words else "no word between <b> and </b>"
        raise InputError(f"{where}: {brief(repr(text), 80)} has {found}; one must be marked")
    begin = MARKED.search(text)
    assert begin
    before, rest = text[: begin.start()].split(), MARKED.sub(r"\1", text[begin.end() :]).split()
    return InContext([*before, *words[0], *rest], len(before), len(before) + len(words[0]))


def _usim(where: str, row: Sequence[str]) -> Pair:
    _, first, tokens, second, others, rating = row
    return Pair(
        number_of(where), _of_number(where, first, tokens), _of_number(where, second, others), _rating(where, rating)
    )


def _of_number(where: str, number: str, text: str) -> InContext:
    tokens = text.split()
    index = _index(where, number, tokens)
    return InContext(tokens, index, index + 1)


def number_of(where: str) -> str:
    """The number of the line that a place names."""
    return where.rpartition(" ")[2]


def _index(where: str, text: str, tokens: Sequence[str]) -> int:
    """The number of a token, written in digits."""
    if not (text.strip().isdecimal() and int(text) < len(tokens)):
        raise InputError(
            f"{where}: {brief(repr(text), 80)} is no number of one of {len(tokens)} tokens; they are numbered from 0"
        )
    return int(text)


def _read_wic(folder: epath.Path) -> Parts[Pair]:
    records, contents = {}, []
    for part in PARTS:
        places = [place for place in (folder, folder / part) if (place / f"{part}.data.txt").exists()]
        if not places or not (places[0] / f"{part}.gold.txt").exists():
            continue
        data, gold = (read(places[0] / f"{part}.{what}.txt") for what in ("data", "gold"))
        rows, answers = list(data.numbered()), list(gold.numbered())
        if len(rows) != len(answers):
            raise InputError(f"{data.where} has {len(rows)} lines, {gold.where} {len(answers)}; they must be as many")
        records[part] = [_wic(*row, *answer) for row, answer in zip(rows, answers, strict=True)]
        contents += [data.content, gold.content]
    if "train" not in records or len(records) < 2:
        raise InputError(
            f"{folder} has {listed(list(records), ' and ') or 'no part'} of WiC; give train.data.txt and "
            "train.gold.txt, and those of dev or test, or both"
        )
    return Parts(stem(folder), records["train"], records.get("dev"), records.get("test"), digest(*contents))


def _wic(where: str, line: str, gold_where: str, gold: str) -> Pair:
    row = line.split("\t")
    if len(row) != 5:
        raise InputError(f"{where}, has {len(row)} columns; a line of WiC is word, part of speech, i-j, text, text")
    if gold.strip() not in ("T", "F"):
        raise InputError(f"{gold_where}, is {brief(repr(gold))}; it must be T or F")
    _, _, indices, first, second = row
    if indices.count("-") != 1:
        raise InputError(f"{where}: {brief(repr(indices))} must be i-j, the numbers of the word's tokens")
    one, _, other = indices.partition("-")
    pair = _of_number(where, one, first), _of_number(where, other, second)
    return Pair(number_of(where), *pair, float(gold.strip() == "T"))


def read_word_sets(path: str | os.PathLike) -> list[WordSets]:
    """JSON {"name", "targets", "attributes", "templates", "pairs"}: a file, a glob or a folder of .json.

    targets and attributes are each two sets, {"name": ["word", ..]}, of two words or more; templates, which may lack,
    sentences with {word} for all sets, or {"name of the set": [sentences]}; pairs, which may lack, two words each that
    define a direction, [["she", "he"], ..].
    """
    return [_word_sets(file) for file in several(path, JSON)]


def _word_sets(path: epath.Path) -> WordSets:
    content = read(path)
    value = parsed_whole(content, "give sets of words as an object of JSON")
    name = _member(value, "name", str, lambda: line_of(content, "name"))
    if unknown := value.keys() - {"name", "targets", "attributes", "templates", "pairs"}:
        raise InputError(
            f"{line_of(content, min(unknown))}: {brief(repr(min(unknown)))} is not known; there are name, targets, "
            "attributes, templates and pairs"
        )
    groups = {}
    for group in ("targets", "attributes"):
        groups[group] = sets = _member(value, group, dict, lambda group=group: line_of(content, group))
        if len(sets) != 2:
            raise InputError(f"{line_of(content, group)}: {group} has {len(sets)} sets; it must have two")
        for label, words in sets.items():
            _check_words(content, label, words)
        first, second = (set(words) for words in sets.values())
        if shared := first & second:
            raise InputError(f"{line_of(content, min(shared))}: {brief(repr(min(shared)))} is in both sets of {group}")
    every = [*groups["targets"], *groups["attributes"]]
    templates, pairs = value.get("templates", {}), value.get("pairs", [])
    if isinstance(templates, list):
        templates = dict.fromkeys(every, templates)
    _check_templates(content, templates, every)
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_term, pair)):
            raise InputError(
                f"{line_of(content, 'pairs')}: {brief(repr(pair))} is no pair of words; pairs are two words each, "
                '[["she", "he"], ..]'
            )
    both = [tuple(pair) for pair in pairs]
    return WordSets(name, groups["targets"], groups["attributes"], templates, both, digest(content.content))


def is_term(value: Any) -> bool:
    """Whether a value out of JSON is a word, or several between spaces."""
    return isinstance(value, str) and bool(value.strip())


def _check_words(content: Content, label: str, words: Any) -> None:
    """A set must be a list of two words or more, none twice."""
    where = line_of(content, label)
    if not isinstance(words, list) or len(words) < 2:
        raise InputError(
            f"{where}: the set {brief(label)} is {brief(repr(words), 80)}; it must be a list of two or more"
        )
    for word in words:
        if not is_term(word):
            raise InputError(f"{where}: the set {brief(label)} has {brief(repr(word))}; it must have words")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise InputError(f"{where}: the set {brief(label)} has {brief(repr(twice[0]))} twice; leave it out once")


def _check_templates(content: Content, templates: Any, sets: Sequence[str]) -> None:
    where = line_of(content, "templates")
    accepted = f"templates are sentences with {TEMPLATE_WORD}, for all sets, or for each by its name"
    if not isinstance(templates, dict) or (templates and set(templates) != set(sets)):
        has = brief(list(templates) if isinstance(templates, dict) else repr(templates))
        raise InputError(f"{where}: templates is {has}, the sets are {', '.join(sets)}; {accepted}")
    for sentences in templates.values():
        if not isinstance(sentences, list) or not sentences:
            raise InputError(f"{where}: {brief(repr(sentences))} is no list of sentences; {accepted}")
        for sentence in sentences:
            if not isinstance(sentence, str) or sentence.split().count(TEMPLATE_WORD) != 1:
                place = line_of(content, sentence)
                raise InputError(f"{place}: {brief(repr(sentence))} has not one token {TEMPLATE_WORD}; {accepted}")


def read_text(path: str | os.PathLike) -> Text:
    """Plain text, a sentence a line, or what else the commands read: a file or a glob. Blank lines are left out."""
    sentences = [tokens for tokens in read_input([os.fspath(path)], option="the task", progress="reading") if tokens]
    if not sentences:
        raise InputError(f"{os.fspath(path)} has no tokens; give text with a sentence a line")
    return Text(stem(path), sentences, digest("\n".join(map(" ".join, sentences)).encode()))
