"""Bad input: each fault is refused with one message that says what, where and the cure, and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from autopeft import tasks
from autopeft.errors import InputError, MissingExtra

GOOD = [{"text": f"text {i}", "other": f"second {i}", "label": "ab"[i % 2], "score": i / 3} for i in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("train.jsonl", GOOD)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def refusal(train: str = "train.jsonl", **arguments: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        tasks.load(train, **{"text": "text", "label": "label", **arguments})
    error = caught.value
    assert error.exit_code == 2
    assert error.where
    assert error.cure
    assert "\n" not in str(error)
    return error


def changed(row: int, **cells: Any) -> list[dict[str, Any]]:
    return [{**one, **cells} if i == row else one for i, one in enumerate(GOOD)]


# --- files ----------------------------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(folder: Path) -> None:
    assert str(refusal("trian.jsonl")) == "trian.jsonl: no such file; did you mean 'train.jsonl'?"


def test_missing_file_far_from_any_lists_what_is_there(folder: Path) -> None:
    assert refusal("zzz.csv").cure == "data files in that folder: train.jsonl"


def test_missing_folder(folder: Path) -> None:
    assert "'nowhere' does not exist" in str(refusal("nowhere/train.jsonl"))


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "data.csv").mkdir()
    assert refusal("data.csv").cure == "name a file, not a folder"


def test_unknown_format(folder: Path) -> None:
    error = refusal("train.xlsx")
    assert error.what == "unknown data format '.xlsx'"
    assert ".csv, .tsv, .jsonl" in str(error.cure)


def test_missing_column_names_the_nearest(folder: Path) -> None:
    error = refusal(text="txt")
    assert (error.what, error.where) == ("no column 'txt'", "train.jsonl")
    assert "did you mean 'text'?" in str(error.cure)


@pytest.mark.parametrize("arguments", [{"label": "lable"}, {"text_pair": "othr"}])
def test_missing_label_or_pair_column(folder: Path, arguments: dict[str, str]) -> None:
    assert "did you mean" in str(refusal(**arguments).cure)


def test_missing_column_of_an_official_split(folder: Path) -> None:
    write("test.jsonl", [{"text": "t", "labels": "a"}])
    assert str(refusal(test="test.jsonl")).startswith("test.jsonl: no column 'label'; did you mean 'labels'?")


def test_semicolons_are_recognised(folder: Path) -> None:
    Path("a.csv").write_text("text;label\nx;y\n")
    assert "separated by ';'" in str(refusal("a.csv").cure)


def test_wrong_encoding_names_the_line(folder: Path) -> None:
    Path("a.csv").write_bytes(b"text,label\nfine,x\ncaf\xe9,y\n")
    assert str(refusal("a.csv")) == "a.csv:3: byte 0xe9 is not UTF-8; save the file in UTF-8"


def test_malformed_json_names_the_line(folder: Path) -> None:
    Path("a.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "x", "label": }\n')
    error = refusal("a.jsonl")
    assert error.where == "a.jsonl:2"
    assert "malformed JSON" in error.what


def test_a_json_line_that_is_no_object(folder: Path) -> None:
    Path("a.jsonl").write_text('{"text": "x", "label": 1}\n"text"\n')
    assert refusal("a.jsonl").where == "a.jsonl:2"


def test_malformed_json_array_names_the_line(folder: Path) -> None:
    Path("a.json").write_text('[{"text": "x", "label": 1},\n {"text" "x"}]')
    assert refusal("a.json").where == "a.json:2"


def test_deeply_nested_json(folder: Path) -> None:
    Path("a.jsonl").write_text("[" * 100_000)
    assert "a.jsonl:1" in str(refusal("a.jsonl"))


def test_ragged_row_names_the_line_it_starts_on(folder: Path) -> None:
    Path("a.csv").write_text('text,label\n"two\nlines",x\none,two,three\n')
    assert str(refusal("a.csv")).startswith("a.csv:4: 3 fields where the header has 2")


def test_ragged_tsv(folder: Path) -> None:
    Path("a.tsv").write_text('text\tlabel\n"x\ty\nz\n')
    assert str(refusal("a.tsv")).startswith("a.tsv:3: 1 fields where the header has 2")


def test_an_open_quote(folder: Path) -> None:
    Path("a.csv").write_text('text,label\n"never closed,x\nmore,y\n')
    assert refusal("a.csv").where == "a.csv:2"


def test_two_columns_of_one_name(folder: Path) -> None:
    Path("a.csv").write_text("text,label,label\nx,y,z\n")
    assert "two columns are called 'label'" in str(refusal("a.csv"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_an_empty_file(folder: Path, name: str) -> None:
    Path(name).write_text("")
    assert refusal(name).what == "the file is empty"


def test_a_broken_parquet_file(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    Path("a.parquet").write_bytes(b"PAR1 and then nothing")
    assert "not a readable Parquet file" in refusal("a.parquet").what


def test_a_parquet_file_with_bytes_that_are_no_text(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    good = pyarrow.array([row["text"] for row in GOOD])
    offsets, content = good.buffers()[1:]
    bad = pyarrow.StringArray.from_buffers(len(good), offsets, pyarrow.py_buffer(b"\x80" + content.to_pybytes()[1:]))
    parquet.write_table(pyarrow.table({"text": bad, "label": [row["label"] for row in GOOD]}), "a.parquet")
    assert "not a readable Parquet file ('utf-8' codec" in refusal("a.parquet").what


def test_parquet_has_columns_and_row_numbers_too(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["x", None, "y"], "label": [1, 0, 1]})
    parquet.write_table(table, "a.parquet")
    assert refusal("a.parquet").where == "a.parquet, row 1"
    assert "did you mean 'text'?" in str(refusal("a.parquet", text="texts"))


@pytest.mark.parametrize(("train", "package"), [("a.parquet", "pyarrow"), ("hf:imdb", "datasets")])
def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch, train: str, package: str) -> None:
    Path("a.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does to block an import
    with pytest.raises(MissingExtra, match=rf"'{package}' is not installed; pip install 'autopeft\[datasets\]'"):
        tasks.load(train, text="text", label="label")


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, "", "   "])
def test_a_few_empty_texts(folder: Path, empty: str | None) -> None:
    rows = changed(6, text=empty)
    rows[9] = {**rows[9], "text": None}
    error = refusal(write("a.jsonl", rows))
    assert (error.what, error.where) == ("column 'text' has no text in 2 of 40 rows (5.00%)", "a.jsonl:7")
    assert str(error.cure).startswith("drop those rows or fill them in")


def test_a_text_column_full_of_nulls(folder: Path) -> None:
    error = refusal(write("a.jsonl", [{**row, "text": None} for row in GOOD]))
    assert error.what == "column 'text' has no text in any of its 40 rows"
    assert error.cure == "name another column"


def test_an_empty_second_text(folder: Path) -> None:
    error = refusal(write("a.jsonl", changed(3, other="")), text_pair="other")
    assert "column 'other' has no text in 1 of 40 rows" in error.what


def test_empty_texts_of_a_test_split(folder: Path) -> None:
    write("test.jsonl", [{"text": "", "label": "a"}, {"text": "x", "label": "b"}])
    assert refusal(test="test.jsonl").where == "test.jsonl:1"


def test_a_list_is_no_text(folder: Path) -> None:
    error = refusal(write("a.jsonl", changed(2, text=["a", "b"])))
    assert (error.what, error.where) == ("column 'text' holds a list, not text", "a.jsonl:3")


def test_half_a_character(folder: Path) -> None:
    Path("a.jsonl").write_text('{"text": "\\ud83d", "label": 1}\n{"text": "x", "label": 0}\n')
    assert "lone surrogate" in refusal("a.jsonl").what


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, "", "nan", "NaN", float("nan")])
def test_a_missing_label(folder: Path, label: Any) -> None:
    error = refusal(write("a.jsonl", changed(4, label=label)))
    assert (error.what, error.where) == ("column 'label' has no label in 1 of 40 rows (2.50%)", "a.jsonl:5")


@pytest.mark.parametrize("label", [["a"], {"a": 1}])
def test_a_label_that_is_no_plain_value(folder: Path, label: Any) -> None:
    assert refusal(write("a.jsonl", changed(4, label=label))).where == "a.jsonl:5"


def test_an_infinite_label(folder: Path) -> None:
    assert "infinite" in refusal(write("a.jsonl", changed(4, label=float("inf")))).what


def test_a_label_that_is_no_number_in_regression(folder: Path) -> None:
    error = refusal(write("a.jsonl", changed(8, score="high")), label="score", kind="regression")
    assert error.what == "label 'high' in column 'score' is not a finite number"
    assert error.where == "a.jsonl:9"


def test_one_class_only(folder: Path) -> None:
    error = refusal(write("a.jsonl", [{**row, "label": "a"} for row in GOOD]))
    assert error.what == "label column 'label' holds one value only, 'a'"


def test_one_number_only(folder: Path) -> None:
    rows = [{**row, "score": 2.5} for row in GOOD]
    assert "one value only, '2.5'" in refusal(write("a.jsonl", rows), label="score").what


@pytest.mark.parametrize("split", ["test", "validation", "selection"])
def test_a_label_seen_only_in_another_split(folder: Path, split: str) -> None:
    write("other.jsonl", [{"text": "t0", "label": "a"}, {"text": "t1", "label": "c"}, {"text": "t2", "label": "c"}])
    error = refusal(**{split: "other.jsonl"})
    assert error.what == f"label 'c' occurs 2 times in the {split} split and never in train"
    assert error.where == "other.jsonl:2"
    assert "known: a, b" in str(error.cure)


def test_a_label_all_of_whose_training_rows_stand_in_the_test_split(folder: Path) -> None:
    rows = [*GOOD, {"text": "only one", "label": "c"}]
    write("test.jsonl", [{"text": "only one", "label": "c"}])
    error = refusal(write("a.jsonl", rows), test="test.jsonl")
    assert error.what == "label 'c' has no training example that is not also in another split"


def test_a_column_of_names_is_no_label(folder: Path) -> None:
    assert "40 different labels in 40 rows" in refusal(label="other", text="text").what


# --- metric, kind, columns ------------------------------------------------------------------------------------------


def test_unknown_metric_before_any_file_is_read() -> None:
    error = refusal("not there.csv", metric="acuracy")
    assert error.where == "task.metric"
    assert "did you mean 'accuracy'?" in str(error.cure)


@pytest.mark.parametrize(("metric", "label", "kind"), [("pearson", "label", "class"), ("accuracy", "score", "regr")])
def test_a_metric_of_the_other_kind(folder: Path, metric: str, label: str, kind: str) -> None:
    assert f"metric {metric!r} does not fit a {kind}" in refusal(metric=metric, label=label).what


def test_unknown_kind(folder: Path) -> None:
    assert refusal(kind="ranking").where == "task.kind"


@pytest.mark.parametrize(
    "arguments", [{"label": "text"}, {"text_pair": "label"}, {"text_pair": "text"}], ids=["label", "pair", "same"]
)
def test_one_column_named_twice(folder: Path, arguments: dict[str, str]) -> None:
    assert "name the same column" in refusal(**arguments).what


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 1.5, float("nan"), float("inf")])
def test_a_size_that_is_none(folder: Path, size: float) -> None:
    assert refusal(validation_size=size).where == "task.validation_size"


@pytest.mark.parametrize("size", [0, -3, 0.5, 2.5])
def test_a_train_size_that_is_none(folder: Path, size: float) -> None:
    assert refusal(train_size=size).where == "task.train_size"


def test_a_split_that_would_be_empty(folder: Path) -> None:
    error = refusal(test_size=0.01)
    assert (error.what, error.where) == ("the test split would be empty (0.01 of 40 rows)", "task.test_size")


def test_an_empty_split_file(folder: Path) -> None:
    Path("test.csv").write_text("text,label\n")
    error = refusal(test="test.csv")
    assert (error.what, error.where) == ("the test split is empty", "test.csv")


def test_a_test_file_that_is_the_train_file(folder: Path) -> None:
    assert refusal(test="train.jsonl").what == "every row of the train split stands in another split too"


def test_more_asked_for_than_there_is(folder: Path) -> None:
    error = refusal(train_size=30, validation_size=20)
    assert error.what == (
        "test 4, selection 4, validation 20 and train 30 ask for 58 examples; "
        "there are 40 different examples in train.jsonl"
    )


def test_held_out_splits_that_leave_nothing_to_train_on(folder: Path) -> None:
    assert "at least one training example a class" in refusal(validation_size=32).what


def test_fewer_training_examples_than_classes(folder: Path) -> None:
    error = refusal(train_size=1)
    assert error.what == "1 training examples are fewer than the 2 classes"


# --- stored rows ----------------------------------------------------------------------------------------------------


def test_stored_rows_of_a_file_that_has_shrunk(folder: Path) -> None:
    task = tasks.load("train.jsonl", text="text", label="label")
    write("train.jsonl", GOOD[:20])
    with pytest.raises(InputError, match="drawn from a file with more rows"):
        tasks.load_source(task.source, task.rows)


def test_stored_rows_without_a_split(folder: Path) -> None:
    rows = {"train": [0, 1], "validation": [2], "selection": [3]}
    assert "hold no test split" in refusal(rows=rows).what
