"""Labels as people enter them: requests, written; CSV files as spreadsheets leave them, read; every mistake named."""

import csv
import itertools
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import alfk
from alfk.own.annotations import MOST_PROBLEMS, read_annotations, write_request
from alfk.own.queries import Query, write_csv
from tests.helpers import refuses

FILES, KINDS = ["a.jpg", "b/c d.jpg", "e, f.jpg", "ü.jpg", "g.jpg", "H.jpg"], ["ant", "bee or wasp", "çat"]
VALIDATION = [f"{kind}/{i}.jpg" for kind in KINDS for i in range(2)]


def a_query(indices, **reasons):
    """A query with some reasons, e.g. similarity=[0.5, -0.2]."""
    tensors = {name: torch.tensor(values) for name, values in reasons.items()}
    return Query(torch.tensor(indices, dtype=torch.int64), **tensors, method="Rzg_pz", classes=tuple(KINDS))


def table(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def parts(found):
    indices = torch.tensor([4, 2, 0, 1, 5])
    tensors = found.positions, found.labels, found.skipped, found.unsure, found.settled, found.missing(indices)
    return [tensor.tolist() for tensor in tensors]


@pytest.fixture
def read(tmp_path):
    """Reads texts as labels0.csv, labels1.csv, ..."""

    def written(*contents, files=FILES, classes=KINDS):
        paths = [tmp_path / f"labels{i}.csv" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_annotations(paths, files, classes)

    return written


# Requests


def test_a_request_has_the_reasons_and_is_the_file_to_fill_in(tmp_path):
    """A guess that is only the class of the matched error is not given."""
    reasons = {"matches": [4, 0], "error_label": [2, 0], "error_prediction": [0, 1], "similarity": [0.75, -0.2]}
    query, path = a_query([3, 0], **reasons, prediction=[2, 2], pseudo_label=[2, 1]), tmp_path / "ask.csv"
    write_request(path, query, FILES, VALIDATION)
    rows, reasons = table(path), query.rows(FILES, VALIDATION)
    assert list(rows[0]) == ["number", "file", "label", *list(reasons[0])[2:]]
    guesses = [("", ""), ("çat", "bee or wasp")]
    for row, reason, guess, number in zip(rows, reasons, guesses, "12", strict=True):
        wanted = {**reason, "prediction": guess[0], "pseudo_label": guess[1], "number": number, "label": ""}
        del wanted["index"]
        assert row == {name: str(value) for name, value in wanted.items()}
    assert parts(read_annotations(path, FILES, KINDS)) == [[], [], [], [], [], [4, 2, 0, 1, 5]]
    filled = path.read_text("utf-8-sig").replace("1,ü.jpg,", "1,ü.jpg,unsure").replace("2,a.jpg,", "2,a.jpg,çat")
    path.write_text(filled)
    assert parts(read_annotations(str(path), FILES, KINDS)) == [[0], [2], [], [3], [0], [4, 2, 1, 5]]
    write_request(path, a_query([]), FILES, VALIDATION)
    assert path.read_text("utf-8-sig") == "number,file,label\n"
    assert path.read_bytes().startswith("\ufeff".encode())  # by which spreadsheets know UTF-8


def test_no_cell_is_a_formula_and_numbers_are_numbers(tmp_path):
    names = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "'=a", "'a"]
    write_csv(tmp_path / "table.csv", [{"file": name, "similarity": -0.2} for name in names])
    rows = table(tmp_path / "table.csv")
    assert [row["file"] for row in rows] == ["'" + name for name in names[:-1]] + ["'a"]
    assert {row["similarity"] for row in rows} == {"-0.2"}


NAMES = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("=+-@'\t\r\n\",; eé\u0301E"), min_size=1)


@settings(deadline=None, max_examples=80)
@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_any_names_come_back(tmp_path_factory, files, classes):
    if {name.strip().casefold() for name in classes} & {"skip", "unsure"}:
        return
    path, number = tmp_path_factory.getbasetemp() / "any.csv", range(len(files))
    write_request(path, a_query(number), files, [])
    cells, known = [row["file"] for row in table(path)], itertools.cycle(classes)
    write_csv(path, [{"file": file, "label": label} for file, label in zip(files, known, strict=False)])
    found = read_annotations(path, files, classes)
    assert found.positions.tolist() == list(number)
    assert found.labels.tolist() == [i % len(classes) for i in number]
    with open(path, "w", newline="", encoding="utf-8") as file:  # cells as they stand in the request
        csv.writer(file).writerows([["file", "label"], *([cell, "skip"] for cell in cells)])
    assert read_annotations(path, files, classes).skipped.tolist() == list(number)


# Files as people leave them

PLAIN = """file,label
b/c d.jpg,bee or wasp
"e, f.jpg",skip
ü.jpg,çat
g.jpg,
a.jpg,unsure
"""
FORMS = {
    "as it is": PLAIN,
    "CR": PLAIN.replace("\n", "\r"),
    "blank lines": PLAIN.replace("\n", "\n\n") + "\n,\n ,\n",
    "spaces": PLAIN.replace("file,label", "File , Label ").replace(",bee", " , bee").replace("skip", " skip "),
    "no end of line": PLAIN.rstrip("\n"),
    "more columns": PLAIN.replace("file,label", "file,label,who").replace("wasp", "wasp,me,,"),
    "the other way round": 'label,file\nbee or wasp,b/c d.jpg\nskip,"e, f.jpg"\nçat,ü.jpg\n,g.jpg\nunsure,a.jpg',
    "labels twice": PLAIN + "g.jpg,\nb/c d.jpg,bee or wasp\nü.jpg,\n",
    "BOM, CRLF, ;": ("\ufeff" + PLAIN.replace(",", ";").replace('"e; f.jpg"', "e, f.jpg")).replace("\n", "\r\n"),
    "tabs, UTF-16": PLAIN.replace(",", "\t").replace('"e\t f.jpg"', "e, f.jpg").encode("utf-16"),
    "case": PLAIN.replace("file,label", "FILE,Label").replace("b/c d.jpg,bee", "B/C D.JPG,Bee").replace("sk", "Sk"),
    "Unicode form": PLAIN.replace("ü", "u\u0308").replace("çat", "c\u0327at"),
    "no such image, but no label": PLAIN + "z.jpg,\n",
}


def test_labels_as_spreadsheets_write_them(read, tmp_path):
    nothing = [[], [], [], [], [], [4, 2, 0, 1, 5]]
    assert parts(read_annotations(tmp_path / "labels.csv", FILES, KINDS)) == nothing
    for text in ("file,label\n", "\ufefffile;label\r\n"):
        assert parts(read(text)) == nothing
    for form, text in FORMS.items():
        assert parts(read(text)) == [[1, 3], [1, 2], [2], [0], [1, 2, 3], [4, 5]], form


def test_several_files_are_one(read):
    """A label or `skip` of any file has precedence over `unsure`."""
    first, second = "file,label\na.jpg,unsure\ng.jpg,ant\n", "file,label\na.jpg,ant\ng.jpg,unsure\nü.jpg,skip\n"
    for texts in ((first, second), (second, first)):
        assert parts(read(*texts)) == [[0, 4], [0, 0], [3], [], [0, 3, 4], [2, 1, 5]]


def test_classes_that_are_numbers(read):
    found = read("file,label\na.jpg,2\ng.jpg,0.0\nü.jpg,SKIP\n", classes=None)
    assert parts(found) == [[0, 4], [2, 0], [3], [], [0, 3, 4], [2, 1, 5]]
    for label in ("-1", "1.5", "02", "ant", "1e3", "9" * 20):
        words = f"line 2: '{label}' is no class number, nor skip or unsure"
        refuses(lambda label=label: read(f"file,label\na.jpg,{label}\n", classes=None), words)


def test_names_that_only_quotes_can_hold_or_that_are_alike(read, tmp_path):
    """A name that is not one of the pool's is taken without the spaces around it, then without case, if one is left."""
    odd = [" a.jpg", "a.jpg", "a.jpg ", "A.jpg", "l\nb.jpg", "b\u2028c.jpg", "d\re.jpg", "f\r\ng", 'h"i', '"', "\x0cj"]
    kinds, labels = ["ant", "ant ", "Ant", " "], [i % 4 for i in range(len(odd))]
    path = tmp_path / "labels.csv"
    write_csv(path, [{"file": name, "label": kinds[label]} for name, label in zip(odd, labels, strict=True)])
    found = read_annotations(path, odd, kinds)
    assert (found.positions.tolist(), found.labels.tolist()) == (list(range(len(odd))), labels)
    assert read('file,label\n H"I , ant\n', files=odd, classes=kinds).labels.tolist() == [0]
    refuses(lambda: read("file,label\nA.JPG,Ant\n", files=odd, classes=kinds), "it could be ' a.jpg' or a.jpg or")


def test_names_that_are_no_utf_8(read):
    """They come back, and a file in another encoding is told from a misspelt name."""
    names = ["a.jpg", os.fsdecode(b"\xe9.jpg")]
    assert read(b"file,label,who\n\xe9.jpg,ant,Ren\xe9e\n", files=names).positions.tolist() == [1]
    refuses(lambda: read(b"file,label\na.jpg,\xe7at\n", files=names), "; save the file as CSV in UTF-8")


# Mistakes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg,ant\n", "its first line has to name one column file and one column label"),
        ("", "its first line has to name one column file"),
        ("file,label,Label\na.jpg,ant,çat\n", "its first line has to name one column file and one column label"),
        ("file,label\na.jpg,zebra\n", "line 2: 'zebra' is none of the classes (ant, bee or wasp, çat), nor skip or "),
        ("file,label\na.jpg,zebra\n", "; clean images of a new class make it one"),
        ("file,label\na.jpg,bee o wasp\n", "; did you mean bee or wasp?"),
        ("file,label\na.jpg,ant\nhh.jpg,ant\n", "line 3: hh.jpg is not among the pool's files; did you mean H.jpg?"),
        ("file,label\nc d.jpg,ant\n", "line 2: c d.jpg is not among the pool's files; did you mean b/c d.jpg?"),
        ("file,label\na.jpg,ant\ng.jpg,ant\na.jpg,çat\n", "line 4: a.jpg has the label çat here, ant in "),
        ("file,label\na.jpg,skip\nA.jpg,çat\n", "line 3: a.jpg has the label çat here, skip in "),
        ("file,label\na.jpg,ant,çat\n", "line 2: 3 values in 2 columns; put a name with ',' in double quotes"),
        ("file,label\ne, f.jpg,ant\n", "line 2: 3 values in 2 columns"),
        ("file,label\na.jpg;ant\n", "line 2: a.jpg;ant is one value; separate values by ',' as in the first line"),
        ("file,label\n ,ant\n", "line 2: 'ant' has no file"),
        ('file,label,who\na.jpg,ant,"me\ng.jpg,ant,\n', "unexpected end of data; save it as CSV in UTF-8"),
        ('file,label\n"no\nname\u2028.jpg",ant\n', r"line 3: 'no\nname\u2028.jpg' is not among"),
        (b"\xff\xfe\x00,\x80", "save it as CSV in UTF-8"),
    ],
)
def test_a_mistake_takes_one_line(read, content, words):
    refuses(lambda: read(content), words)


def test_files_and_names_that_cannot_be(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path, tmp_path / "pipe.csv"):
        refuses(lambda path=path: read_annotations(path, FILES, KINDS), f"cannot read {path}: ")
    for word in ("skip", "Unsure "):
        refuses(lambda word=word: read("file,label\n", classes=["ant", word]), f"a class cannot be called {word!r}")
    refuses(lambda: read("file,label\n", files=["a.jpg", "a.jpg"]), "two images of the pool have the same name")


def test_all_mistakes_of_all_files_are_listed_at_once(read, tmp_path):
    """Also those beyond the first of a line, and of the files after one that cannot be read."""
    first = "file,label\naa.jpg,rose\ng.jpg,ant,ant\nü.jpg,ant\n"
    with pytest.raises(alfk.UserError) as caught:
        read(first, "no header", "file,label\nü.jpg,çat\n")
    where = [str(tmp_path / f"labels{i}.csv") for i in range(3)]
    starts = (
        f"{where[0]}, line 2: aa.jpg is not among the pool's files; did you mean a.jpg?",
        f"{where[0]}, line 2: 'rose' is none of the classes",
        f"{where[0]}, line 3: 3 values in 2 columns",
        f"{where[1]}: its first line",
        f"{where[2]}, line 2: ü.jpg has the label çat here, ant in {where[0]}, line 4",
    )
    for line, start in zip(str(caught.value).splitlines(), starts, strict=True):
        assert line.startswith(start)
    with pytest.raises(alfk.UserError) as caught:
        read("file,label\n" + "a.jpg,rose\n" * (MOST_PROBLEMS + 13))
    assert str(caught.value).splitlines()[MOST_PROBLEMS:] == ["and 13 more"]


def test_hints_for_a_large_pool(read):
    """A misspelt name is compared with those that begin or end as it does."""
    names = [f"{i // 100}/{i:05}.jpg" for i in range(30_000)]
    refuses(lambda: read("file,label\n17/01x23.jpg,ant\n", files=names), "; did you mean 17/01")
    names[-1] = "a folder of a long name/in another/2.jpg"
    refuses(lambda: read("file,label\n2.jpg,ant\n", files=names), "; did you mean a folder of a long name/in another/2")
