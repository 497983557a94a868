"""The package keeps the rules of its architecture, and each rule finds a planted violation."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.architecture import (
    EXTRAS,
    HEAVY,
    ROWS,
    RULES,
    Sources,
    against_the_order,
    cycles,
    dangling,
    heavy_imports,
    lazy_own_imports,
    named_imports,
    outside_the_table,
    oversized,
    relative_imports,
    row_of,
    sources_of,
    unsafe,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule) -> None:
    assert rule(sources_of(ROOT)) == []


def test_long_files_and_functions_are_printed() -> None:
    found = oversized(sources_of(ROOT))
    if found:
        warnings.warn("longer than 400 lines a file or 60 a function: " + "; ".join(found), stacklevel=1)


IMPORT_ALL = """
import importlib, sys
for name in {blocked!r}:
    sys.modules[name] = None
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, "needs", error)
"""


def test_torch_free_modules_import_where_torch_transformers_peft_and_all_extras_are_absent() -> None:
    modules = [name for name in sources_of(ROOT) if (row := row_of(name)) is not None and ROWS[row].torch_free]
    script = IMPORT_ALL.format(blocked=[*HEAVY, *EXTRAS])
    run = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert len(modules) > 20


def test_import_of_the_package_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, "numpy", "scipy"}
    script = f"import sys, autopeft; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_every_verb_loads_has_no_report_and_no_part_of_scipy() -> None:
    script = (
        "import sys, autopeft.cli.app, autopeft.cli.console, autopeft.study.study, autopeft.search; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "autopeft.report.numbers" in loaded
    assert not loaded & {"scipy.optimize", "scipy.linalg", "scipy.special", "autopeft.report.html", "jinja2", "ray"}


# What follows plants violations: a rule that finds nothing anywhere would pass all of the above.

PLANTED = [
    (outside_the_table, {"autopeft.utils": ""}),
    (
        against_the_order,
        {"autopeft.spaces.base": "from autopeft.search.base import Searcher", "autopeft.search.base": ""},
    ),
    (against_the_order, {"autopeft.search": "from autopeft import study", "autopeft.study": "", "autopeft": ""}),
    (against_the_order, {"autopeft.report": "import autopeft.training.loop", "autopeft.training.loop": ""}),
    (
        against_the_order,
        {"autopeft.study": "def f():\n    from autopeft.training import evaluate", "autopeft.training": ""},
    ),
    (against_the_order, {"autopeft.modules.base": "from autopeft.modules.lora.layer import LoraLinear"}),
    (against_the_order, {"autopeft.errors": "from autopeft import Study", "autopeft": ""}),
    (relative_imports, {"autopeft.search.random": "from .base import Searcher"}),
    (relative_imports, {"autopeft.search.random": "from . import base"}),
    (lazy_own_imports, {"autopeft.study": "def f():\n    from autopeft.trial import Trial"}),
    (lazy_own_imports, {"autopeft.study": "def f():\n    importlib.import_module('autopeft.trial')"}),
    (heavy_imports, {"autopeft.study": "import torch.nn as nn"}),
    (heavy_imports, {"autopeft.cli.show": "from transformers import AutoModel"}),
    (heavy_imports, {"autopeft.tasks.files": "try:\n    import pyarrow.parquet\nexcept ImportError:\n    pass"}),
    (heavy_imports, {"autopeft.adapters.files": "import peft"}),
    (heavy_imports, {"autopeft.study": "if TYPE_CHECKING:\n    import torch\nelse:\n    import torch"}),
    (against_the_order, {"autopeft.trial": "if TYPE_CHECKING:\n    import autopeft.study", "autopeft.study": ""}),
    (cycles, {"autopeft.a": "import autopeft.b", "autopeft.b": "import autopeft.c", "autopeft.c": "import autopeft.a"}),
    (cycles, {"autopeft.s": "from autopeft.s import x", "autopeft.s.x": "from autopeft.s import Y"}),
    (unsafe, {"autopeft.study": "import pickle"}),
    (unsafe, {"autopeft.study": "from marshal import loads"}),
    (unsafe, {"autopeft.study": "yaml.load(text)"}),
    (unsafe, {"autopeft.study": "x = eval('1')"}),
    (unsafe, {"autopeft.study": "torch.load(path)"}),
    (unsafe, {"autopeft.study": "torch.load(path, weights_only=False)"}),
    (unsafe, {"autopeft.study": "torch.save(state, path)"}),
    (unsafe, {"autopeft.study": "np.load(path, allow_pickle=True)"}),
    (unsafe, {"autopeft.study": "AutoModel.from_pretrained(name, trust_remote_code=True)"}),
    (unsafe, {"autopeft.study": "options = {'trust_remote_code': True}"}),
    (unsafe, {"autopeft.study": "from torch import load\nload(path)"}),
    (unsafe, {"autopeft.study": "from torch import load as read\nread(path)"}),
    (unsafe, {"autopeft.study": "import torch as t\nt.load(path, weights_only=flag)"}),
    (unsafe, {"autopeft.study": "import torch\nread = torch.load\nread(path)"}),
    (unsafe, {"autopeft.study": "from functools import partial\nimport torch\nread = partial(torch.load, f)"}),
    (unsafe, {"autopeft.study": "from yaml import load\nload(text)"}),
    (unsafe, {"autopeft.study": "import yaml as y\ny.load_all(text)"}),
    (unsafe, {"autopeft.study": "import yaml\nyaml.compose(text, Loader=yaml.FullLoader)"}),
    (unsafe, {"autopeft.study": "import yaml\nread = yaml.unsafe_load"}),
    (unsafe, {"autopeft.study": "import yaml\ngetattr(yaml, 'unsafe_load')"}),
    (unsafe, {"autopeft.study": "import builtins\nbuiltins.eval('1')"}),
    (unsafe, {"autopeft.study": "run = exec"}),
    (unsafe, {"autopeft.study": "compile('1', '', 'eval')"}),
    (unsafe, {"autopeft.study": "__import__(name)"}),
    (unsafe, {"autopeft.study": "import numpy\nnumpy.load(path, allow_pickle=flag)"}),
    (unsafe, {"autopeft.study": "import joblib"}),
    (unsafe, {"autopeft.study": "from shelve import open"}),
    (unsafe, {"autopeft.study": "import dill as d"}),
    (unsafe, {"autopeft.study": "import subprocess\nsubprocess.run('ls', shell=True)"}),
    (unsafe, {"autopeft.study": "import subprocess\nsubprocess.run('ls', shell=flag)"}),
    (unsafe, {"autopeft.study": "from os import system\nrun = system"}),
    (unsafe, {"autopeft.study": "from tempfile import mktemp\nmktemp()"}),
    (unsafe, {"autopeft.study": "archive.extractall(folder)"}),
    (unsafe, {"autopeft.study": "archive.extract(member, folder)"}),
    (unsafe, {"autopeft.study": "import shutil\nshutil.unpack_archive(path)"}),
    (named_imports, {"autopeft.study": "import importlib\nimportlib.import_module(config['module'])"}),
    (named_imports, {"autopeft.study": "from importlib import import_module as i\ni(f'autopeft.{name}')"}),
    (dangling, {"autopeft.study": "EVALUATE = 'autopeft.worker:evaluate'"}),
    (dangling, {"autopeft.study": "EVALUATE = 'autopeft.worker:run'", "autopeft.worker": "def evaluate(job): ..."}),
    (dangling, {"autopeft.modules.lora.spec": "layer = 'autopeft.modules.lora.layers'"}),
    (oversized, {"autopeft.study": "x = 1\n" * 401}),
    (oversized, {"autopeft.study": "def f():\n" + "    x = 1\n" * 60}),
]


@pytest.mark.parametrize(("rule", "sources"), PLANTED)
def test_a_planted_violation_is_found(rule, sources: Sources) -> None:
    assert len(rule(sources)) == 1


ALLOWED = {
    "autopeft": "from autopeft.version import __version__\nif TYPE_CHECKING:\n    import autopeft.training.loop",
    "autopeft.version": "__version__ = '0'",
    "autopeft.errors": "",
    "autopeft.modules.lora.spec": "from autopeft.errors import InputError",
    "autopeft.modules.lora.layer": "import torch\nfrom autopeft.modules.lora.spec import Lora",
    "autopeft.training.loop": "import torch\nfrom autopeft.modules.lora import layer\nmodel.eval()",
    "autopeft.report": "from autopeft.errors import InputError",
    "autopeft.peft": "import peft\ntorch.load(path, weights_only=True)",
    "autopeft.tasks.files": "def read():\n    import pyarrow.parquet\nyaml.safe_load(text)",
    "autopeft.archives": "import re, tarfile\nre.compile('x')\ntarfile.open(path).extractall(d, filter='data')",
    "autopeft.study.executors.base": "import importlib\nimportlib.import_module(name)\nsubprocess.run([], shell=False)",
    "autopeft.cli.train": "def train():\n    from autopeft.training.loop import fit\n    import torch",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_passes(rule) -> None:
    assert rule(ALLOWED) == []
