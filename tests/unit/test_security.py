"""What a stranger's adapter, backbone or study may try; and that a search opens no socket."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - to make what must never be opened
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction, PeftConfig, PeftModel
from peft.auto import AutoPeftModel

import autopeft.peft  # noqa: F401 - registers the composite type
from autopeft.adapters import Adapter, load
from autopeft.errors import InputError
from autopeft.setting import describe_backbone
from tests import models
from tests.hostile import SMALL, Malicious, save_backbone, small_adapter

# -- what was opened ---------------------------------------------------------------------------------------------------
_WATCHED: list[list[str]] = []


def _watch(event: str, given: tuple[object, ...]) -> None:
    if event == "open":
        for names in _WATCHED:
            names.append(str(given[0]))


sys.addaudithook(_watch)  # it can never be taken away again


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of all files that Python opens while a test runs."""
    _WATCHED.append([])
    yield _WATCHED[0]
    _WATCHED.clear()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def adapter(backbone: Path) -> Adapter:
    return small_adapter(backbone)


def through_peft(folder: Path) -> None:
    PeftModel.from_pretrained(models.tiny_model("bert", torch.float32), str(folder))


def as_second_adapter(folder: Path) -> None:
    good = folder.parent / "good"
    model = PeftModel.from_pretrained(models.tiny_model("bert", torch.float32), str(good))
    model.load_adapter(str(folder), "second")


def through_auto_model(folder: Path) -> None:
    AutoPeftModel.from_pretrained(str(folder))


def through_feature_extraction(folder: Path) -> None:
    AutoPeftModelForFeatureExtraction.from_pretrained(str(folder))


def test_the_malicious_pickle_would_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


LOADERS = [load, through_peft, as_second_adapter]


# -- pickles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pkl"])
def test_a_pickled_adapter_is_refused_unopened(
    adapter: Adapter, tmp_path: Path, opened: list[str], name: str, beside: bool, loader: Callable[[Path], Any]
) -> None:
    adapter.save(tmp_path / "good")
    folder = adapter.save(tmp_path / "a")
    if not beside:
        (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Malicious(tmp_path / "mark")))
    opened.clear()
    with pytest.raises(InputError, match=f"'{name}' is a pickle, .*it was not opened"):
        loader(folder)
    assert not [path for path in opened if path.endswith(name)]
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_safetensors_is_refused(
    adapter: Adapter, tmp_path: Path, form: str, loader: Callable[[Path], Any]
) -> None:
    adapter.save(tmp_path / "good")
    folder = adapter.save(tmp_path / "a")
    weights, evil = folder / "adapter_model.safetensors", Malicious(tmp_path / "mark")
    if form == "torch":
        torch.save(evil, weights)
    else:
        weights.write_bytes(pickle.dumps(evil))
    with pytest.raises(InputError, match="this is a pickle under the name of safetensors; it was not opened"):
        loader(folder)
    assert not (tmp_path / "mark").exists()


def test_pickles_of_other_things_beside_an_adapter_are_left_alone(
    adapter: Adapter, tmp_path: Path, opened: list[str]
) -> None:
    folder = adapter.save(tmp_path / "a")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "mark")))
    opened.clear()
    assert load(folder).configuration == SMALL
    through_peft(folder)
    assert not [path for path in opened if path.endswith("training_args.bin")]
    assert not (tmp_path / "mark").exists()


# -- names of code in an adapter's configuration -----------------------------------------------------------------------
NAMED = {
    "auto_mapping to a module": {"auto_mapping": {"parent_library": "evil_module", "base_model_class": "Model"}},
    "auto_mapping to os": {"auto_mapping": {"parent_library": "os", "base_model_class": "System"}},
    "auto_mapping beside transformers": {
        "auto_mapping": {"parent_library": "transformers_evil", "base_model_class": "Model"}
    },
    "auto_mapping to a module that peft allows": {
        "auto_mapping": {"parent_library": "diffusers.evil", "base_model_class": "Model"}
    },
    "auto_mapping to what transformers imports": {
        "auto_mapping": {"parent_library": "transformers.utils.import_utils", "base_model_class": "Importlib"}
    },
    "auto_mapping to no class": {"auto_mapping": {"parent_library": "transformers", "base_model_class": "os.path"}},
    "auto_mapping with more": {
        "auto_mapping": {"parent_library": "transformers", "base_model_class": "BertModel", "module": "evil_module"}
    },
    "auto_mapping as text": {"auto_mapping": "evil_module"},
    "evaluate": {"evaluate": "evil_module:run"},
    "custom_module_mapping": {"custom_module_mapping": {"torch.nn.Linear": "evil_module.Linear"}},
    "base_model_class": {"base_model_class": "evil_module.Model"},
    "parent_library": {"parent_library": "evil_module"},
    "trust_remote_code": {"trust_remote_code": True},
    "megatron_core": {"megatron_core": "evil_module"},
    "auto_map": {"auto_map": {"AutoModel": "evil--evil_module.Model"}},
    "target_modules": {"target_modules": ["query"]},
}
EVIL_MODULE = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nclass Model: ...\n"


@pytest.fixture
def evil_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module within reach that leaves a mark when it is imported; yields the mark."""
    (tmp_path / "evil_module.py").write_text(EVIL_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "imported"
    sys.modules.pop("evil_module", None)


def test_the_evil_module_would_leave_its_mark(evil_module: Path) -> None:
    __import__("evil_module")
    assert evil_module.exists()


@pytest.mark.parametrize(
    "loader", [*LOADERS, through_auto_model, through_feature_extraction, lambda f: PeftConfig.from_pretrained(str(f))]
)
@pytest.mark.parametrize("added", NAMED.values(), ids=NAMED)
def test_a_configuration_that_names_code_is_refused(
    adapter: Adapter, tmp_path: Path, evil_module: Path, added: dict[str, Any], loader: Callable[[Path], Any]
) -> None:
    adapter.save(tmp_path / "good")
    path = adapter.save(tmp_path / "a") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    with pytest.raises(InputError, match=r"may name code to be run|names something to import"):
        loader(path.parent)
    assert not evil_module.exists()


def test_what_peft_itself_writes_is_no_name_of_code(adapter: Adapter, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(models.tiny_model("bert", torch.float32), str(adapter.save(tmp_path / "a")))
    model.save_pretrained(tmp_path / "b")
    told = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert told["auto_mapping"]["parent_library"] == "transformers.models.bert.modeling_bert"
    assert load(tmp_path / "b").configuration == SMALL
    through_peft(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", "ab"), ("labels", [1]), ("max_length", "16"), ("max_length", 10**9), ("max_length", 0),
     ("head", []), ("backbone", "x"), ("provenance", [1]), ("revision", 3), ("pairs", 1), ("format", True)],
)  # fmt: skip
@pytest.mark.parametrize("loader", [load, through_peft])
def test_values_of_another_type_are_refused(
    adapter: Adapter, tmp_path: Path, key: str, value: object, loader: Callable[[Path], Any]
) -> None:
    path = adapter.save(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=key):
        loader(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("[" * 5000, "nested too deeply"), ('{"a": ' * 100 + "1" + "}" * 100, "nested too deeply"),
     ('{"format": NaN}', "not a finite number"), ('{"format": 1e999}', "not a finite number"),
     ('{"format": 99999999999999999999}', "64 bits"), ('{"a": "\\ud800"}', "no text in UTF-8"),
     (b"\xff", "no text in UTF-8")],
)  # fmt: skip
@pytest.mark.parametrize("loader", [load, lambda folder: describe_backbone(str(folder))])
def test_json_that_is_no_plain_data_is_refused(
    adapter: Adapter, backbone: Path, tmp_path: Path, text: str | bytes, says: str, loader: Callable[[Path], Any]
) -> None:
    adapter.save(tmp_path)
    for name in ("adapter_config.json", "config.json"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=says):
        loader(tmp_path)


# -- backbones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 10**9}, {"hidden_size": "768"}, {"hidden_size": -1}, {"vocab_size": 10**18},
     {"num_attention_heads": 0}, {"num_hidden_layers": True}, {"hidden_size": [1]}],
)  # fmt: skip
def test_a_backbone_of_absurd_sizes_is_refused(backbone: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    told = json.loads((backbone / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, **changes}))
    with pytest.raises(InputError, match=r"is not a size|not credible"):
        describe_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "/dev/zero", "missing"])
def test_an_index_of_weights_names_files_beside_it_only(backbone: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("a secret")
    (folder / "config.json").write_bytes((backbone / "config.json").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="is not a file beside the index"):
        describe_backbone(str(folder))


# -- sockets -----------------------------------------------------------------------------------------------------------
SOCKETS = """
import os, pathlib, re, sys

def listening():
    # /proc/net lists sockets of all processes by inode; state 0A of TCP is LISTEN, any UDP socket that is bound counts.
    found = {}
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path("/proc/net", kind).read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" or kind.startswith("udp"):
                found[parts[9]] = f"{kind} {parts[1]}"
    return found

def family(root):
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    known = {root}
    while more := {p for p, parent in parents.items() if parent in known} - known:
        known |= more
    return known

def held(root):
    open_to, found = listening(), set()
    for process in family(root):
        for path in pathlib.Path(f"/proc/{process}/fd").glob("*"):
            try:
                link = os.readlink(path)
            except OSError:  # it is closed by now
                continue
            if link.startswith("socket:[") and link[8:-1] in open_to:
                found.add(open_to[link[8:-1]])
    return found
"""
SEARCH = """
import os, threading, time
from autopeft.study.study import Study
from tests.contracts.cheap_studies import definition

seen, workers, done = set(), set(), threading.Event()
def watch():
    while not done.is_set():
        workers.update(family(os.getpid()))
        seen.update(held(os.getpid()))
        time.sleep(0.02)
watcher = threading.Thread(target=watch)
watcher.start()
with Study.start(sys.argv[1], definition("slow", trials=8)) as study:
    study.run(2, "process")
    completed = len([t for t in study.trials if t.status == "completed"])
done.set()
watcher.join()
print(completed, len(workers) > 2, sorted(seen))
"""
LISTENER = """
import os, socket, subprocess
with socket.create_server(("127.0.0.1", 0)):
    print(len(held(os.getppid())))
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_no_process_of_a_search_listens(tmp_path: Path) -> None:
    def run(script: str, *arguments: str) -> str:
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", SOCKETS + script, *arguments], cwd=root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert run(SEARCH, str(tmp_path / "study")) == "8 True []"
    assert run(LISTENER) == "1"  # a socket of a child is seen


# -- permissions ------------------------------------------------------------------------------------------------------

MAKE = """
import os, sys
os.umask(int(sys.argv[2], 8))
from autopeft.study.study import Study
from tests.contracts.cheap_studies import definition
with Study.start(sys.argv[1], definition("formula", trials=2)) as study:
    study.run()
"""


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_study_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path / "study"), f"{umask:o}"], cwd=root, check=True)
    made = list((tmp_path / "study").rglob("*"))
    assert len(made) > 6
    for path in (tmp_path / "study", *made):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & umask, path
        assert not mode & 0o022, path  # nobody else may write


# -- remote code -------------------------------------------------------------------------------------------------------


def test_code_that_comes_with_a_backbone_is_not_run(backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in backbone.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    told = json.loads((folder / "config.json").read_text())
    told["auto_map"] = {"AutoModel": "code.Model", "AutoConfig": "code.Config"}
    (folder / "config.json").write_text(json.dumps(told))
    from autopeft.backbones import load_backbone

    load_backbone(describe_backbone(str(folder)))
    assert not (tmp_path / "mark").exists()
