"""A CSV of images lists what it says, in its order; what it gets wrong is named by row, column and value."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.listing import Listing
from ssl_core.data.manifest import listing
from ssl_core.errors import DataError
from tests.ssl_core.data import trees

Write = Callable[..., DatasetConfig]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A manifest with the given text, beside one image, a.png."""

    def manifest(text: str | bytes, **settings: Any) -> DatasetConfig:
        (tmp_path / "a.png").touch()
        path = tmp_path / "list.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return DatasetConfig(source="manifest", path=str(path), **settings)

    return manifest


def test_a_manifest_lists_paths_labels_groups_and_splits(tmp_path: Path) -> None:
    trees.manifest_tree(tmp_path)
    found = listing(DatasetConfig(source="manifest", path=str(tmp_path / "manifest.csv")))
    assert found.ids[:3].tolist() == ["images/000.png", "images/001.jpg", "images/002.tif"]
    assert found.paths is not None
    assert [p.relative_to(tmp_path).as_posix() for p in found.paths] == found.ids.tolist()
    assert all(p.is_file() for p in found.paths)
    assert (found.class_names, found.task) == (("stage 0", "stage 1", "stage 2"), "multiclass")
    assert (found.labels == np.arange(60) % 3).all()
    assert found.labels.dtype == np.int64
    assert found.groups is not None
    assert (found.groups == [str(i // 4) for i in range(60)]).all()
    assert found.given is not None
    assert found.given[:16].tolist() == [TRAIN] * 4 + [VAL] * 4 + [TRAIN] * 4 + [TEST] * 4
    assert dict(found.tables) == {"manifest": tmp_path / "manifest.csv"}
    assert found.channels is None


def test_several_label_columns_are_one_label_each(tmp_path: Path) -> None:
    trees.manifest_tree(tmp_path, several=True, splits=False)
    config = DatasetConfig(source="manifest", path=str(tmp_path / "manifest.csv"), label_columns=("c", "a"))
    found = listing(config)
    assert (found.class_names, found.task, found.labels.dtype) == (("c", "a"), "multilabel", np.uint8)
    assert (found.labels == [[i >> 2 & 1, i & 1] for i in range(60)]).all()
    assert found.given is None


@pytest.mark.parametrize(
    ("values", "names", "labels", "task"),
    [
        (["10", "9", "2.0", "2"], ("2", "9", "10"), [2, 1, 0, 0], "multiclass"),
        (["0.5", "-1", "0.5", "-1"], ("-1", "0.5"), [1, 0, 1, 0], "binary"),
        (["grade 10", "grade 9", "Grade 1", "grade 9"], ("Grade 1", "grade 9", "grade 10"), [2, 1, 0, 1], "multiclass"),
        (["1", "x", "1", "x"], ("1", "x"), [0, 1, 0, 1], "binary"),
    ],
)
def test_classes_come_in_natural_order(
    write: Write, values: list[str], names: tuple[str, ...], labels: list[int], task: str
) -> None:
    rows = [f"{name},{value}\n" for name, value in zip(("a.png", "b", "c", "d"), values, strict=True)]
    found = listing(write("path,label\n" + "".join(rows)))
    assert (found.class_names, found.labels.tolist(), found.task) == (names, labels, task)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,x\nb.png,y\n",
        "\ufeffpath,label\r\na.png,x\r\nb.png,y\r\n",
        "path;label;note\na.png;x;1,5\nb.png;y;2,5",
        "Label\tPath\nx\ta.png\n\ny\tb.png\n",
        'path,label,note\n"a.png", x ,"two\nlines, quoted"\nb.png,y,\n',
    ],
)
def test_separators_byte_order_marks_and_blank_lines_make_no_difference(write: Write, text: str) -> None:
    found = listing(write(text))
    assert found.ids.tolist() == ["a.png", "b.png"]
    assert (found.class_names, found.labels.tolist()) == (("x", "y"), [0, 1])
    assert found.groups is None
    assert found.given is None


def test_paths_may_be_absolute_and_columns_have_other_names(write: Write, tmp_path: Path) -> None:
    settings = {"path_column": "file", "label_columns": ("dx",), "group_column": "patient", "split_column": "fold"}
    text = f"file,dx,patient,fold\n{tmp_path}/a.png,x,p1,Training\nsub\\b.png,y,p2,valid\n"
    found = listing(write(text, **settings))
    assert found.paths == (tmp_path / "a.png", tmp_path / "sub/b.png")
    assert found.ids.tolist() == [f"{tmp_path}/a.png", "sub/b.png"]
    assert found.groups is not None
    assert found.groups.tolist() == ["p1", "p2"]
    assert found.given is not None
    assert found.given.tolist() == [TRAIN, VAL]


HEAD = "path,label,group,split\na.png,x,p,train\n"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "has no rows below its header"),
        ("path,label\n", {}, "has no rows below its header"),
        ("file,label\na.png,x\n", {}, r"no column 'path' \(dataset.path_column\).*known: file, label"),
        ("path,labels\na.png,x\n", {}, r"no column 'label' \(dataset.label_columns\); did you mean labels\?"),
        (
            HEAD + "b.png,y,p,test\n",
            {"group_column": "grop"},
            r"no column 'grop' \(dataset.group_column\); did you mean group\?",
        ),
        (HEAD + "b.png,y,p,test\n", {"split_column": "fold"}, r"no column 'fold' \(dataset.split_column\)"),
        ("path,label,label\na.png,x,y\n", {}, r"2 columns 'label'"),
        (HEAD + "b.png,,p,test\n", {}, "row 3: label 'label' is ''; label this image"),
        (HEAD + "b.png,NaN,p,test\n", {}, "row 3: label 'label' is 'NaN'"),
        (HEAD + ",y,p,test\n", {}, "row 3: column 'path' is empty"),
        (HEAD + "b.png,y,,test\n", {}, "row 3: group 'group' is ''"),
        (HEAD + "\nb.png,y,p,dev\n", {}, "row 4: split 'split' is 'dev'; expected train"),
        (HEAD + "b.png,y\n", {}, "row 3: has 2 values, and so none in column 'group'"),
        (HEAD + "b.png,y,p,test,z\n", {}, "row 3: has 5 values, the header 4; quote"),
        (HEAD + "b.png,y,p,test\n./a.png,x,p,train\n", {}, "row 4: path './a.png' is there twice, first in row 2"),
        (HEAD + "b.png,x,p,test\n", {}, "one class, 'x'; at least two"),
        ("path,u,v\na.png,1,0\nb.png,0,2\n", {"label_columns": ("u", "v")}, "row 3: label 'v' is '2'; expected 0 or 1"),
        ("path,u,v\na.png,1,0\n", {"label_columns": ("u", "u")}, "names a column twice"),
        (b"path,label\na.png,\xff\n", {}, "is no UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named(write: Write, text: str | bytes, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        listing(write(text, **settings))


def test_a_manifest_may_be_gzipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    path = tmp_path / "list.csv.gz"
    content = gzip.compress(b"path,label\na.png,x\nb.png,y\n")
    path.write_bytes(content)
    assert listing(DatasetConfig(source="manifest", path=str(path))).ids.tolist() == ["a.png", "b.png"]
    for broken in (content[:-12], b"path,label"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"list.csv.gz is (cut short or )?no gzip file"):
            listing(DatasetConfig(source="manifest", path=str(path)))


def test_a_manifest_without_its_images_names_the_folder_looked_in(write: Write, tmp_path: Path) -> None:
    config = write("path,label\nb.png,x\nc.png,y\n")
    with pytest.raises(DataError, match=f"none of the 2 images is there, e.g. b.png; looked in {tmp_path}"):
        listing(config)


def test_a_manifest_must_be_a_file(tmp_path: Path) -> None:
    def of(path: Path) -> Listing:
        return listing(DatasetConfig(source="manifest", path=str(path)))

    with pytest.raises(DataError, match="is a folder; name the CSV file"):
        of(tmp_path)
    with pytest.raises(DataError, match=r"none.csv cannot be read \(No such file"):
        of(tmp_path / "none.csv")
