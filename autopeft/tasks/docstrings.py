"""The built-in data: what does a docstring of the standard library document? Built on the spot, torch-free.

Text that is on every machine with Python: the first sentence of each docstring. Its label is what stands under it, read
off the syntax tree: a module, a class, a procedure (a function that returns nothing), a predicate (returns true or
false) or a function (returns a value). No module is imported. docs/data.md says why this labelling was chosen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import math
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError
from autopeft.tasks.readers import Table

NAME = "demo"
CLASSES = ("class", "function", "module", "predicate", "procedure")
MIN_WORDS, MAX_WORDS = 4, 30
MOST_PER_CLASS = 600
SIMILAR = 0.7

# Parts that some distributions leave out, tests, and modules that a Python from 3.11 to 3.13 no longer has: without
# them the set is nearly the same everywhere.
LEFT_OUT = frozenset(
    (
        *("__pycache__", "__phello__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3"),
        *("msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"),
        *("aifc.py", "asynchat.py", "asyncore.py", "cgi.py", "cgitb.py", "chunk.py", "crypt.py", "imghdr.py", "imp.py"),
        *("mailcap.py", "nntplib.py", "pipes.py", "smtpd.py", "sndhdr.py", "sre_compile.py", "sre_constants.py"),
        *("sre_parse.py", "sunau.py", "telnetlib.py", "turtle.py", "uu.py", "xdrlib.py"),
    )
)
# Calls whose value is true or false.
TESTS = frozenset({"all", "any", "bool", "callable", "hasattr", "isinstance", "issubclass"})


def table() -> Table:
    """Returns the demo's examples with the columns "text" and "label", in a stable order.

    Cost: about 2 s the first time in a process, then nothing.

    Raises:
        InputError: Where this Python comes without the sources of its standard library.

    Example:
        >>> sorted(set(table().columns["label"])) == list(CLASSES)
        True
    """
    chosen = _chosen()
    columns = {"text": [text for text, _ in chosen], "label": [label for _, label in chosen]}
    return Table(NAME, columns)


def stable_order(texts: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Returns the row numbers ordered by a hash of each text and the seed.

    A text keeps its place among the others whatever texts come or go, so the splits of two Python versions, whose
    docstrings differ a little, hardly differ.
    """
    return np.argsort([_hash(f"{seed}:{text}") for text in texts], kind="stable").astype(np.int64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@functools.cache
def _chosen() -> tuple[tuple[str, str], ...]:
    folder = Path(sysconfig.get_path("stdlib"))
    labels: dict[str, set[str]] = defaultdict(set)
    spelling: dict[str, str] = {}
    for path in _sources(folder):
        for docstring, label in documented(path):
            text = first_sentence(docstring)
            if text is not None:
                spelling.setdefault(text.lower(), text)
                labels[text.lower()].add(label)
    # A text that documents things of two kinds has no label.
    single = [(spelling[key], next(iter(found))) for key, found in labels.items() if len(found) == 1]
    chosen = distinct(sorted(single, key=lambda item: (_hash(item[0]), item[0])))
    counts = Counter(label for _, label in chosen)
    if set(counts) != set(CLASSES):
        cure = "install the full Python, or name a file of your own"
        raise InputError("this Python has no standard library sources", where=str(folder), cure=cure)
    return tuple(chosen)


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in LEFT_OUT or path.name.startswith("config-") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (docstring, label) of what a source file documents; a file that does not parse yields nothing.

    Left out, since their text does not tell: constructors, properties, generators, and bodies that only pass or raise.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # grows while it is read
        # Definitions stand in bodies, never in expressions, which are most of a tree.
        nodes.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring, label = ast.get_docstring(node), _label(node)
            if docstring and label:
                yield docstring, label


def _label(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    marks = {mark.id if isinstance(mark, ast.Name) else getattr(mark, "attr", "") for mark in node.decorator_list}
    if node.name == "__init__" or marks & {"property", "setter", "abstractmethod"} or _is_stub(node):
        return None
    returned = _returned(node)
    if returned is None:
        return None
    values = [value for value in returned if value is not None and not _is_constant(value, None)]
    if not values:
        return "procedure"
    return "predicate" if all(value is None or _is_truth(value) for value in returned) else "function"


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Raise)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )


def _returned(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr | None] | None:
    """Returns the values of a function's return statements, or None for a generator."""
    values: list[ast.expr | None] = []
    inner: list[ast.AST] = list(node.body)
    for part in inner:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(part, ast.Yield | ast.YieldFrom):
            return None
        if isinstance(part, ast.Return):
            values.append(part.value)
        inner.extend(ast.iter_child_nodes(part))
    return values


def _is_constant(value: ast.expr, constant: bool | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant


def _is_truth(value: ast.expr) -> bool:
    if isinstance(value, ast.BoolOp):
        return all(_is_truth(part) for part in value.values)
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in TESTS
    negated = isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
    return isinstance(value, ast.Compare) or negated or _is_constant(value, True) or _is_constant(value, False)


def first_sentence(docstring: str) -> str | None:
    r"""Returns the first sentence of a docstring on one line, or None where it is too short, too long or no prose.

    Example:
        >>> first_sentence("Return the sum.\n\nOf all.") is None  # three words
        True
        >>> first_sentence("Return the sum of\nall items. Raises nothing.")
        'Return the sum of all items.'
    """
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    # A full stop after a lower-case letter or a closing mark: not after "e.g" with a comma, initials or numbers.
    sentence = re.split(r"(?<=[a-z)\]'\"`]\.)\s+(?=[A-Z])", paragraph, maxsplit=1)[0]
    is_signature = "->" in sentence or re.match(r"[\w.]+\(", sentence) is not None
    return None if is_signature or not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS else sentence


def distinct(items: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the (text, label) pairs in order, without near copies and with at most `MOST_PER_CLASS` a class.

    A text is a near copy of an earlier one where their sets of words share `SIMILAR` of their union (Jaccard index).
    Two such sets share one of the few rarest words of each, so only texts that do are compared.
    """
    words = [frozenset(re.findall(r"[a-z0-9]+", text.lower())) for text, _ in items]
    frequency = Counter(word for group in words for word in group)
    chosen: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    by_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    for (text, label), group in zip(items, words, strict=True):
        if counts[label] == MOST_PER_CLASS or not group:
            continue
        prefix = len(group) - math.ceil(SIMILAR * len(group)) + 1
        rarest = sorted(group, key=lambda word: (frequency[word], word))[:prefix]
        if any(len(group & other) >= SIMILAR * len(group | other) for word in rarest for other in by_word[word]):
            continue
        for word in rarest:
            by_word[word].append(group)
        counts[label] += 1
        chosen.append((text, label))
    return chosen
