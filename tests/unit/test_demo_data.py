"""The built-in data: deterministic, balanced as stated, without near copies, and labelled by what the code is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autopeft import tasks
from autopeft.errors import InputError
from autopeft.tasks import docstrings
from autopeft.tasks.base import TaskSource

SOURCE = '''"""Tools for counting the words of books."""

class Book:
    """A book with its words and its title."""

    def __init__(self):
        """Initialise the book with no words at all."""

    @property
    def title(self):
        """The title that stands on the cover."""
        return self._title

    def words(self):
        """Yield all the words of this book."""
        yield from self._words

    def close(self):
        """Close the book and put it away."""
        self.open = False
        def inner():
            return 3

    def is_open(self):
        """Tell whether the book lies open now."""
        if self.lost:
            return False
        return self.open is True and not self.lost

    def read(self):
        """Read the book and give its text."""
        if self.lost:
            return None
        return self._text

    def later(self):
        """Not written yet, comes with time."""
        raise NotImplementedError
'''


def test_labels_are_read_off_the_syntax_tree(tmp_path: Path) -> None:
    path = tmp_path / "book.py"
    path.write_text(SOURCE)
    found = {label: text for text, label in docstrings.documented(path)}
    assert found == {
        "module": "Tools for counting the words of books.",
        "class": "A book with its words and its title.",
        "procedure": "Close the book and put it away.",
        "predicate": "Tell whether the book lies open now.",
        "function": "Read the book and give its text.",
    }


def test_a_file_that_is_no_python_yields_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text('"""A docstring before the fault."""\ndef (:\n')
    assert list(docstrings.documented(path)) == []


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of it all.\nSecond sentence here.", "Return the sum of it all."),
        ("Return the sum, i.e. the total of it.", "Return the sum, i.e. the total of it."),
        ("Return it all\n   over two lines\n\nMore.", "Return it all over two lines"),
        ("Too short this.", None),
        ("sum(a, b, c) gives the total of them.", None),
        ("year -> 1 if leap year, else 0.", None),
        (" ".join(["word"] * 31), None),
    ],
)
def test_first_sentence(docstring: str, sentence: str | None) -> None:
    assert docstrings.first_sentence(docstring) == sentence


def test_the_set_has_the_classes_and_sizes_it_states() -> None:
    table = docstrings.table()
    counts = Counter(table.columns["label"])
    assert set(counts) == set(docstrings.CLASSES)
    assert max(counts.values()) <= docstrings.MOST_PER_CLASS
    assert min(counts.values()) >= 100
    assert sum(counts.values()) >= 350 + 3 * 500
    assert all(docstrings.MIN_WORDS <= len(text.split()) <= docstrings.MAX_WORDS for text in table.columns["text"])


def test_no_two_texts_are_near_copies() -> None:
    # All pairs by brute force, as one product of 0/1 matrices: the set itself compares only likely pairs.
    groups = [set(re.findall(r"[a-z0-9]+", text.lower())) for text in docstrings.table().columns["text"]]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*groups)))}
    M = np.zeros((len(groups), len(vocabulary)), dtype=np.float32)
    for row, group in enumerate(groups):
        M[row, [vocabulary[word] for word in group]] = 1
    shared, size = M @ M.T, M.sum(1)
    jaccard = shared / (size[:, None] + size[None, :] - shared)
    np.fill_diagonal(jaccard, 0)
    assert jaccard.max() < docstrings.SIMILAR


def test_distinct_drops_a_near_copy_and_keeps_the_first() -> None:
    items = [
        ("Return the number of open files here", "function"),
        ("Return the number of open files there now", "function"),  # 6 of 9 words shared: kept
        ("Return the number of all open files here", "function"),  # 7 of 8 shared: dropped
    ]
    assert docstrings.distinct(items) == items[:2]


def test_default_sizes_and_disjoint_splits() -> None:
    task = tasks.demo()
    assert {name: len(part) for name, part in task.splits.items()} == {
        "train": 350,
        "validation": 500,
        "selection": 500,
        "test": 500,
    }
    assert (task.kind, task.metric, task.labels) == ("classification", "accuracy", docstrings.CLASSES)
    texts = [text for part in task.splits.values() for text in part.texts]
    assert len(set(texts)) == len(texts) == 1850


def test_splits_are_stratified() -> None:
    task = tasks.demo()
    whole = Counter(docstrings.table().columns["label"])
    for part in task.splits.values():
        counts = np.bincount(part.targets, minlength=len(task.labels))
        expected = np.array([whole[label] for label in task.labels]) / sum(whole.values()) * len(part)
        assert np.abs(counts - expected).max() <= 3


def test_it_is_the_same_in_another_process_with_another_hash_seed() -> None:
    script = "from autopeft import tasks; print(tasks.demo().fingerprint)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == tasks.demo().fingerprint


def test_a_smaller_train_split_is_a_subset_and_leaves_the_others() -> None:
    large, small = tasks.demo(train_size=300), tasks.demo(train_size=100)
    assert len(set(small.splits["train"].texts) - set(large.splits["train"].texts)) <= len(large.labels)
    assert all(small.rows[split] == large.rows[split] for split in ("validation", "selection", "test"))


def test_the_seed_moves_the_splits() -> None:
    assert tasks.demo(seed=1).rows["test"] != tasks.demo(seed=0).rows["test"]


def test_a_text_keeps_its_place_when_others_go() -> None:
    texts = list(docstrings.table().columns["text"])
    fewer = texts[::2]
    ordered = [texts[i] for i in docstrings.stable_order(texts, 0)]
    assert [fewer[i] for i in docstrings.stable_order(fewer, 0)] == [text for text in ordered if text in set(fewer)]


def test_the_source_demo_and_stored_rows_give_the_same_task() -> None:
    task = tasks.demo()
    assert task.source.train == "demo"
    again = tasks.load_source(TaskSource(**vars(task.source)), {split: list(r) for split, r in task.rows.items()})
    assert again.fingerprint == task.fingerprint


def test_the_demo_refuses_other_columns_and_files() -> None:
    with pytest.raises(InputError, match="demo: no column 'review'"):
        tasks.load("demo", text="review", label="label")
    with pytest.raises(InputError, match=r"task\.test: the demo has no files of its own"):
        tasks.load("demo", text="text", label="label", test="test.csv")
    with pytest.raises(InputError, match="ask for 3500 examples; there are"):
        tasks.demo(train_size=2000)
