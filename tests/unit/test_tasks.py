"""Reading, splitting and identity of tasks, on small files written here and on the public sets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import tasks
from autopeft.tasks.base import Task, TaskSource
from autopeft.tasks.columns import class_order, kind_of
from autopeft.tasks.readers import dataset_names, read
from autopeft.tasks.splits import Sizes, allocate, draw, duplicates
from benchmarks.data import faults, listing

ROWS = [{"text": f"text number {i}", "label": "ab"[i % 2], "score": i / 7} for i in range(60)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sizes(task: Task) -> dict[str, int]:
    return {name: len(part) for name, part in task.splits.items()}


# --- formats -------------------------------------------------------------------------------------------------------

TRICKY = [("a, comma", "x"), ('a "quote"', "y"), ("é, 字 and 😀", "x"), ("two\nlines", "y")]


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    body = 'text,label\n"a, comma",x\n"a ""quote""",y\n"é, 字 and 😀",x\n"two\nlines",y\n\n'
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    table = read(str(path), ["label", "text"])
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == TRICKY
    assert table.lines == [2, 3, 4, 5]


def test_tsv_takes_quotes_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"lone quote\tx\nsecond row\ty\n')
    assert read(str(path), ["text"]).columns["text"] == ['"lone quote', "second row"]


def test_tsv_written_with_quotes_around_a_tab_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"with\ttab"\tx\nplain\ty\n')
    assert read(str(path), ["text"]).columns["text"] == ["with\ttab", "plain"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text('{"text": "one", "label": 1}\n\n{"label": 0, "text": "line\u2028separator"}\n', encoding="utf-8")
    table = read(str(path), ["text", "label"])
    assert (table.columns["text"], table.columns["label"]) == (["one", "line\u2028separator"], [1, 0])
    assert table.place(1) == f"{path}:3"


def test_a_json_array_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one", "label": 1},\n {"text": "two", "label": 0}]')
    assert read(str(path), ["text"]).columns["text"] == ["one", "two"]


def test_every_format_gives_the_same_task(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        lines = [mark.join(("text", "label")), *(mark.join((row["text"], row["label"])) for row in ROWS)]
        (tmp_path / f"a{suffix}").write_text("\n".join(lines))
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    loaded = [
        tasks.load(tmp_path / f"a{s}", text="text", label="label") for s in (".csv", ".tsv", ".jsonl", ".parquet")
    ]
    assert len({task.fingerprint for task in loaded}) == 1
    assert len({json.dumps(task.rows) for task in loaded}) == 1


def test_names_of_data_sets() -> None:
    assert dataset_names("hf:imdb") == ([("imdb", None)], None)
    assert dataset_names("hf:nyu-mll/glue/rte") == ([("nyu-mll/glue", "rte")], None)
    assert dataset_names("hf:owner/name#test") == ([("owner/name", None), ("owner", "name")], "test")


def test_a_folder_is_a_data_set_name(tmp_path: Path) -> None:
    assert dataset_names(f"hf:{tmp_path}") == ([(str(tmp_path), None)], None)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["pos", "neg"] * 5, "classification"),
        ([0, 1] * 5, "classification"),
        (["0", "1"] * 5, "classification"),
        ([True, False] * 5, "classification"),
        (["1", "two"] * 5, "classification"),
        ([1.0, 2.0, 5.0] * 5, "classification"),
        ([1.0, 2.5, 5.0] * 5, "regression"),
        (["3.25", "4"] * 5, "regression"),
        (list(range(21)) * 9, "regression"),  # 21 values with 9 rows each
        (list(range(21)) * 10, "classification"),
        (list(range(20)), "classification"),
    ],
)
def test_the_kind_follows_from_the_labels(labels: list[Any], kind: str) -> None:
    assert kind_of(labels) == kind


def test_class_names_are_ordered_by_value_or_by_name() -> None:
    assert class_order({"10", "9", "1"}) == ("1", "9", "10")
    assert class_order({"10", "9", "x"}) == ("10", "9", "x")


def test_one_whole_number_written_in_three_ways_is_one_class(tmp_path: Path) -> None:
    ways: list[Any] = [1, 1.0, "1", 0, 0.0, "0"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": ways[i % 6]} for i in range(60)])
    assert tasks.load(path, text="text", label="label").labels == ("0", "1")


def test_the_user_may_decide_the_kind(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i % 5} for i in range(60)])
    task = tasks.load(path, text="text", label="label", kind="regression", metric="pearson")
    assert (task.kind, task.labels, task.outputs, task.metric) == ("regression", (), 1, "pearson")
    assert task.splits["train"].targets.dtype == np.float64
    read_as_classes = tasks.load(path, text="text", label="label")
    assert (read_as_classes.kind, read_as_classes.outputs) == ("classification", 5)
    assert any("5 classes" in note for note in read_as_classes.notes)


# --- splits ---------------------------------------------------------------------------------------------------------


def test_default_shares(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    task = tasks.load(path, text="text", label="label")
    assert sizes(task) == {"train": 36, "validation": 12, "selection": 6, "test": 6}
    assert sorted(row for rows in task.rows.values() for row in rows) == list(range(60))
    for part in task.splits.values():
        assert Counter(part.targets.tolist()) == {0: len(part) / 2, 1: len(part) / 2}


def test_rows_name_the_examples(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    task = tasks.load(path, text="text", label="label", seed=3)
    for split, rows in task.rows.items():
        assert task.splits[split].texts == tuple(ROWS[row]["text"] for row in rows)
        assert [task.labels[t] for t in task.splits[split].targets] == [ROWS[row]["label"] for row in rows]


def test_the_seed_decides_the_draw_and_nothing_else_does(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first, again = (tasks.load(path, text="text", label="label", seed=1) for _ in range(2))
    other = tasks.load(path, text="text", label="label", seed=2)
    assert (first.rows, first.fingerprint) == (again.rows, again.fingerprint)
    assert first.rows != other.rows


def test_stored_rows_are_used_instead_of_drawing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    task = tasks.load(path, text="text", label="label", seed=1)
    other_seed = TaskSource(**{**vars(task.source), "seed": 99})
    assert tasks.load_source(other_seed, json.loads(json.dumps(task.rows))).fingerprint == task.fingerprint


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    task = tasks.load(path, text="text", label="label")
    changed = [dict(row) for row in ROWS]
    changed[task.rows["test"][0]]["text"] += "!"
    write_jsonl(tmp_path / "a.jsonl", changed)
    assert tasks.load_source(task.source, task.rows).fingerprint != task.fingerprint


def test_the_fingerprint_covers_labels_pairs_and_the_border_between_texts(tmp_path: Path) -> None:
    def mark(**columns: list[Any]) -> str:
        path = write_jsonl(
            tmp_path / "a.jsonl",
            [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        )
        pair = "b" if "b" in columns else None
        rows = {"train": [0, 1], "validation": [2], "selection": [3], "test": [4]}
        return tasks.load(path, text="a", text_pair=pair, label="y", rows=rows).fingerprint

    a, y = ["ab", "c", "d", "e", "f", "g"], ["u", "v", "u", "v", "u", "v"]
    marks = [
        mark(a=a, y=y),
        mark(a=["a", "bc", *a[2:]], y=y),
        mark(a=a, y=["v", "u", *y[2:]]),
        mark(a=a, b=a[::-1], y=y),
        mark(a=a[::-1], b=a, y=y),
    ]
    assert len(set(marks)) == len(marks)


def test_official_splits_are_kept_and_the_others_drawn(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    test = write_jsonl(tmp_path / "t.jsonl", [{"text": f"new {i}", "label": "a"} for i in range(9)])
    task = tasks.load(path, test=test, text="text", label="label", validation_size=20)
    assert sizes(task) == {"train": 34, "validation": 20, "selection": 6, "test": 9}
    assert task.rows["test"] == tuple(range(9))


def test_a_duplicate_stays_where_it_is_opened_last(tmp_path: Path) -> None:
    shared = ROWS[5]["text"]
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[0], ROWS[0]])
    test = write_jsonl(tmp_path / "t.jsonl", [{"text": shared, "label": "b"}, {"text": "new", "label": "a"}])
    task = tasks.load(path, test=test, text="text", label="label")
    used = [row for split in ("train", "validation", "selection") for row in task.rows[split]]
    assert sorted(used) == [row for row in range(60) if row != 5]  # without 5, 60 and 61
    assert shared in task.splits["test"].texts
    assert any(note.startswith("3 of 62 rows of train are left out") for note in task.notes)


def test_the_same_text_with_another_second_text_is_no_duplicate(tmp_path: Path) -> None:
    rows = [{"a": "same", "b": f"second {i}", "label": i % 2} for i in range(40)]
    task = tasks.load(write_jsonl(tmp_path / "a.jsonl", rows), text="a", text_pair="b", label="label")
    assert sum(sizes(task).values()) == 40
    assert not any("left out" in note for note in task.notes)


def test_copies_in_a_train_file_with_all_other_splits_given_stay() -> None:
    keys = {"train": ["x", "x", "y", "z"], "test": ["z"], "validation": ["u"], "selection": ["w"]}
    assert duplicates(keys, drawing=False)["train"].tolist() == [0, 1, 2]
    assert duplicates(keys, drawing=True)["train"].tolist() == [0, 2]


def test_every_class_is_trained_on_however_rare(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i == 7 else "ab"[i % 2]} for i in range(100)]
    for seed in range(5):
        task = tasks.load(write_jsonl(tmp_path / "a.jsonl", rows), text="text", label="label", train_size=10, seed=seed)
        assert task.labels == ("a", "b", "rare")
        assert set(task.splits["train"].targets.tolist()) == {0, 1, 2}


def test_the_test_split_does_not_move_with_the_other_sizes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    one = tasks.load(path, text="text", label="label", train_size=10, validation_size=10, selection_size=10)
    two = tasks.load(path, text="text", label="label", train_size=20, validation_size=20, selection_size=10)
    assert one.rows["test"] == two.rows["test"]
    assert one.rows["selection"] == two.rows["selection"]
    assert set(one.rows["train"]) < set(two.rows["train"])


def test_sizes_may_be_whole_numbers_written_as_floats(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    task = tasks.load(path, text="text", label="label", validation_size=7.0, selection_size=1, test_size=0.05)
    assert sizes(task) == {"train": 49, "validation": 7, "selection": 1, "test": 3}


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    held=st.tuples(*[st.integers(1, 12)] * 3),
    train=st.one_of(st.none(), st.integers(6, 20)),
    seed=st.integers(0, 5),
)
def test_any_draw_that_is_possible_is_disjoint_exact_and_covers_the_classes(counts, held, train, seed) -> None:
    strata = np.repeat(np.arange(len(counts)), counts)
    n, needed = len(strata), sum(held) + max(len(counts), train or 0)
    if needed > n:
        return
    order = np.random.default_rng(seed).permutation(n)
    drawn = draw(order, strata, Sizes(dict(zip(("test", "selection", "validation"), held, strict=True)), train))
    assert tuple(len(drawn[name]) for name in ("test", "selection", "validation")) == held
    assert len(drawn["train"]) == (n - sum(held) if train is None else train)
    rows = [row for part in drawn.values() for row in part]
    assert len(set(rows)) == len(rows)
    assert set(strata[list(drawn["train"])]) == set(range(len(counts)))


@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=8), share=st.floats(0, 1))
def test_allocation_is_exact_and_within_one_of_proportional(weights, share) -> None:
    total = sum(weights)
    size = int(share * total)
    given_out = allocate(size, np.array(weights), np.array(weights))
    assert given_out.sum() == size
    assert all(0 <= g <= w for g, w in zip(given_out, weights, strict=True))
    if total:
        assert all(abs(g - size * w / total) < 1 + 1e-6 for g, w in zip(given_out, weights, strict=True))


def test_allocation_goes_elsewhere_where_a_stratum_is_used_up() -> None:
    assert allocate(8, np.array([10, 10]), np.array([2, 9])).tolist() == [2, 6]


# --- public sets ----------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(listing()))
def test_the_public_files_are_those_of_the_listing(data_dir: Path, name: str) -> None:
    assert list(faults(name, data_dir / "data" / name)) == []


def test_the_listing_notices_a_changed_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert [fault.split(" is ")[0] for fault in faults("cb", tmp_path)] == ["cb/train.jsonl", "cb/validation.jsonl"]


@pytest.mark.data
def test_trec_sizes_stratification_and_leakage(data_dir: Path) -> None:
    folder = data_dir / "data" / "trec"
    task = tasks.load(
        folder / "train.jsonl", test=folder / "test.jsonl", text="text", label="label",
        train_size=512, validation_size=1500, selection_size=1500,
    )  # fmt: skip
    assert sizes(task) == {"train": 512, "validation": 1500, "selection": 1500, "test": 500}
    assert task.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    # 10 of the official test questions also stand among the training questions, and 71 rows there are copies.
    assert len(task.notes) == 1
    assert task.notes[0].startswith("81 of 5452 rows of train are left out")
    texts = {split: set(part.texts) for split, part in task.splits.items()}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
    # Class shares of the different questions that are not in the test file, counted here from the file itself.
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    label_of = {row["text"]: row["label"] for row in map(json.loads, reversed(lines))}  # the first copy counts
    counted = Counter(label for text, label in label_of.items() if text not in texts["test"])
    shares = np.array([counted[label] for label in task.labels]) / sum(counted.values())
    for split in ("train", "validation", "selection"):
        counts = np.bincount(task.splits[split].targets)
        assert np.abs(counts - shares * counts.sum()).max() < 1
    # The official test file, untouched and in order.
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert task.splits["test"].texts == tuple(row["text"] for row in rows)


@pytest.mark.data
def test_cb_pairs(data_dir: Path) -> None:
    folder = data_dir / "data" / "cb"
    task = tasks.load(
        folder / "train.jsonl", test=folder / "validation.jsonl",
        text="text_a", text_pair="text_b", label="label", metric="f1",
    )  # fmt: skip
    assert sizes(task) == {"train": 175, "validation": 50, "selection": 25, "test": 56}
    assert (task.labels, task.metric) == (("contradiction", "entailment", "neutral"), "macro_f1")
    first = json.loads((folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert task.splits["test"].pairs is not None
    assert (task.splits["test"].texts[0], task.splits["test"].pairs[0]) == (first["text_a"], first["text_b"])
    # 16 neutral rows of 250: 16 * 50 / 250 = 3.2 and 16 * 25 / 250 = 1.6.
    assert [int((part.targets == 2).sum()) for part in task.splits.values()] == [11, 3, 2, 5]


@pytest.mark.data
def test_sick_regression_keeps_its_test_split(data_dir: Path) -> None:
    folder = data_dir / "data" / "sick"
    task = tasks.load(
        folder / "train.jsonl", validation=folder / "validation.jsonl", test=folder / "test.jsonl",
        text="text_a", text_pair="text_b", label="relatedness",
    )  # fmt: skip
    assert (task.kind, task.metric, task.outputs) == ("regression", "spearman", 1)
    # 5 validation pairs also stand in the test file; 3 of 500 in train, where 30 more are copies.
    assert sizes(task) == {"train": 3970, "validation": 495, "selection": 450, "test": 4927}
    targets = task.splits["test"].targets
    assert (targets.min(), targets.max()) == (1.0, 5.0)


@pytest.mark.data
def test_the_fingerprint_is_that_of_its_definition(data_dir: Path) -> None:
    folder = data_dir / "data" / "cb"
    task = tasks.load(folder / "train.jsonl", text="text_a", text_pair="text_b", label="label")
    digest = hashlib.sha256(repr((task.kind, task.labels)).encode())
    for split in ("train", "validation", "selection", "test"):
        part = task.splits[split]
        digest.update(f"{split} {len(part)}\n".encode())
        digest.update(b"".join(b"%d:%s" % (len(t.encode()), t.encode()) for t in (*part.texts, *(part.pairs or ()))))
        digest.update(b"".join(int(t).to_bytes(8, "little", signed=True) for t in part.targets))
    assert task.fingerprint == digest.hexdigest()
