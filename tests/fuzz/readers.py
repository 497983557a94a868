"""Every file that the program reads from others: a valid one, its mutations, and who reads it.

An attempt reads one mutated input. It returns where the input was accepted and raises `AutoPeftError` where it was
refused; whatever else it raises is a fault, as is an attempt that takes minutes or gigabytes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import shutil
import sqlite3
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import autopeft.peft
from autopeft import tasks
from autopeft.adapters import Adapter, build_head, load
from autopeft.archives import Limits, pack, unpack
from autopeft.backbones import inject, load_backbone, load_tokenizer, trained_parameters
from autopeft.cli import app
from autopeft.cli.define import define
from autopeft.cli.flags import Given
from autopeft.errors import AutoPeftError, StudyError
from autopeft.heads.layer import HeadLayer
from autopeft.heads.spec import Head
from autopeft.job import SILENT, Job, Outcome, Report
from autopeft.presets import preset
from autopeft.report.html import render
from autopeft.report.summary import summarise
from autopeft.setting import describe_backbone
from autopeft.study.checkpoints import Checkpoints
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.folders import TrialFolders, canonical, checksum, digest
from autopeft.study.study import Study
from autopeft.training import checkpoint
from autopeft.training.random_states import random_states
from autopeft.training.schedule import Schedule
from autopeft.training.state import State, require_fit, tensors_of
from autopeft.trial import Cost
from tests import models
from tests.contracts.cheap_jobs import SHAPE, formula, some_job
from tests.contracts.cheap_studies import definition
from tests.fuzz.mutations import dumped, mutated_bytes, mutated_json
from tests.hostile import SMALL, save_backbone, small_adapter

Attempt = Callable[[Path, Random], None]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: What is read.
        attempt: Reads one mutated input in an empty scratch folder, with draws from the generator.
    """

    name: str
    attempt: Attempt


@dataclass(frozen=True)
class Originals:
    """Valid inputs, made once.

    Attributes:
        folder: Holds "backbone", "adapter", "study", "data.csv" and others.
        adapter: The adapter in "adapter".
        checkpoint: Files of a checkpoint of a training run.
    """

    folder: Path
    adapter: Adapter
    checkpoint: dict[str, bytes]


def prepare(folder: Path) -> Originals:
    """Makes the valid inputs."""
    backbone = save_backbone(folder / "backbone")
    words = ["the", "film", "was", "good", "bad", "very", "long"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(("[PAD]", "[UNK]", *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(backbone)
    adapter = small_adapter(backbone)
    adapter.save(folder / "adapter")
    rows = [(f"{a} {b} {c}", "pos" if b == "good" else "neg") for a in words for b in words for c in words[:3]]
    with (folder / "data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    _make_study(folder / "study")
    return Originals(folder, adapter, _make_checkpoint())


def _job(job: Job, report: Report = SILENT) -> Outcome:
    if job.number == 6:
        raise ValueError("one of them fails")
    outcome = formula(job)
    counts = vars(job.configuration.count(SHAPE)).copy()
    return replace(
        outcome, cost=Cost(2.0, 1.0, 10**6), detail={**outcome.detail, "curve": [0.9, None, 0.4], "counts": counts}
    )


def _make_study(folder: Path) -> None:
    baselines = (("probe", preset("probe", SHAPE, 1e-3)), ("probe@0.01", preset("probe", SHAPE, 1e-2)))
    with Study.start(folder, definition(trials=8, baselines=baselines)) as study:
        study.run(executor=InlineExecutor(_job))
        study.train(study.front.trials[0].number, 2, executor=InlineExecutor(_job))
        study._store.checkpoints.write(study.trials[0], {"state.json": b"{}", "a/b": b"tensors"})


def _training() -> tuple[Any, HeadLayer, Schedule]:
    model = models.tiny_model("bert", torch.float32)
    injection = inject(model, SMALL)
    return injection, build_head(Head(), model, 2), Schedule(epochs=2, per_epoch=3, warmup=1)


def _make_checkpoint() -> dict[str, bytes]:
    injection, head, schedule = _training()
    trained = trained_parameters(injection, head)
    optimizer = torch.optim.AdamW(trained.values())
    sum(p.sum() for p in trained.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    order = np.random.default_rng(0).bit_generator.state
    state = State(schedule, 1, 1, (), 0.5, order, tensors_of(trained, optimizer), random_states(), (0.5,))
    return checkpoint.pack(state, checkpoint.identity_of(some_job()), Cost(1.0, 1.0, 1))


class Readers:
    """The readers, over one set of originals."""

    def __init__(self, originals: Originals) -> None:
        self._made = originals
        self._cli = CliRunner()
        names = [name for name in dir(self) if not name.startswith("_") and name != "all"]
        self.all = tuple(Reader(name, getattr(self, name)) for name in names)

    # -- settings and data -------------------------------------------------------------------------------------------

    def settings(self, place: Path, rng: Random) -> None:
        """A study's YAML file, up to the definition of the study."""
        root = self._made.folder
        valid = {
            "study": "runs/x",
            "task": {
                "train": str(root / "data.csv"),
                "text": "text",
                "label": "label",
                "kind": "auto",
                "test_size": 0.1,
            },
            "backbone": {"reference": str(root / "backbone"), "revision": None},
            "head": "mean",
            "space": {"preset": "autopeft", "learning_rate": [0.001, 0.003], "serial": [0, 4], "layers": [0, 1, 2]},
            "search": {"searcher": "random", "trials": 4, "constraints": {"parameters": "50%"}, "options": {}},
            "training": {"epochs": 1, "max_length": 16, "batch_size": 8},
            "baselines": {"probe": [0.001]},
        }
        if rng.random() < 0.7:
            content = yaml.safe_dump(mutated_json(valid, rng), allow_unicode=rng.random() < 0.5).encode(
                "utf-8", "replace"
            )
        else:
            content = mutated_bytes(yaml.safe_dump(valid).encode(), rng)
        (place / "a.yaml").write_bytes(content)
        define(Given(str(place / "a.yaml"), {}).settings())

    def data_csv(self, place: Path, rng: Random) -> None:
        """Rows of text and labels, separated by commas or tabs."""
        content = (self._made.folder / "data.csv").read_bytes()
        suffix = rng.choice((".csv", ".tsv"))
        content = content.replace(b",", b"\t") if suffix == ".tsv" else content
        self._data(place / f"a{suffix}", mutated_bytes(content, rng))

    def data_json(self, place: Path, rng: Random) -> None:
        """Rows as JSON, one a line or in one list."""
        with (self._made.folder / "data.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))[:60]
        if rng.random() < 0.5:
            content = dumped(mutated_json(rows, rng))
            return self._data(place / "a.json", content)
        lines = [dumped(mutated_json(row, rng) if rng.random() < 0.05 else row) for row in rows]
        content = b"\n".join(lines)
        return self._data(place / "a.jsonl", mutated_bytes(content, rng) if rng.random() < 0.5 else content)

    def data_parquet(self, place: Path, rng: Random) -> None:
        """Rows as Parquet, of any column type."""
        texts: list[Any] = [f"text {i}" for i in range(40)]
        columns: list[Any] = [["a", "b"] * 20, [0, 1] * 20, [0.5, 1.5] * 20, [None] * 40, [b"a", b"\xff"] * 20]
        columns += [[["a"], []] * 20, [{"x": 1}, {"x": 2}] * 20, [True, False] * 20, [10**15, 2] * 20]
        table = pyarrow.table({"text": rng.choice([texts, rng.choice(columns)]), "label": rng.choice(columns)})
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer)
        content = buffer.getvalue()
        self._data(place / "a.parquet", mutated_bytes(content, rng) if rng.random() < 0.7 else content)

    def _data(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        tasks.load(path, text="text", label="label")

    # -- adapters ----------------------------------------------------------------------------------------------------

    def adapter_config(self, place: Path, rng: Random) -> None:
        """adapter_config.json: loaded, saved again, attached."""
        folder = shutil.copytree(self._made.folder / "adapter", place / "a")
        self._mutate_json(folder / "adapter_config.json", rng)
        adapter = load(folder)
        adapter.files()
        adapter.attach(models.tiny_model("bert", torch.float32))

    def adapter_config_through_peft(self, place: Path, rng: Random) -> None:
        """adapter_config.json, read by peft's own loader after the import of ours."""
        folder = shutil.copytree(self._made.folder / "adapter", place / "a")
        path = folder / "adapter_config.json"
        told = mutated_json(json.loads(path.read_text()), rng)
        if not isinstance(told, dict) or told.get("peft_type") != "AUTOPEFT":
            return  # it is not ours, and peft never asks us
        path.write_bytes(dumped(told))
        autopeft.peft.AutoPeftConfig.from_pretrained(str(folder))

    def adapter_weights(self, place: Path, rng: Random) -> None:
        """adapter_model.safetensors, its header or its bytes changed, with a matching digest or none."""
        folder = shutil.copytree(self._made.folder / "adapter", place / "a")
        path = folder / "adapter_model.safetensors"
        path.write_bytes(_mutated_safetensors(path.read_bytes(), rng))
        told = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**told, "weights_sha256": None}))
        adapter = load(folder)
        adapter.attach(models.tiny_model("bert", torch.float32))
        adapter.files()

    def predict_verb(self, place: Path, rng: Random) -> None:
        """`autopeft predict` on an adapter with one mutated file."""
        folder = shutil.copytree(self._made.folder / "adapter", place / "a")
        path = folder / rng.choice(("adapter_config.json", "adapter_model.safetensors"))
        if path.suffix == ".json":
            self._mutate_json(path, rng)
        else:
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        self._verb("predict", folder, "the film was good")

    # -- archives ----------------------------------------------------------------------------------------------------

    def archives(self, place: Path, rng: Random) -> None:
        """A tar or zip file: its bytes changed, or made of members that nobody should send."""
        suffix = rng.choice((".tar", ".tar.gz", ".zip"))
        archive = place / f"a{suffix}"
        if rng.random() < 0.5:
            pack(self._made.folder / "adapter", archive)
            content = archive.read_bytes()
            if suffix == ".tar.gz" and rng.random() < 0.7:  # else only the checksum of gzip would be tried
                content = gzip.compress(mutated_bytes(gzip.decompress(content), rng), 1)
            else:
                content = mutated_bytes(content, rng)
            archive.write_bytes(content)
        else:
            _odd_archive(archive, rng)
        before = set(place.iterdir())
        limits = Limits(bytes=1 << 22, members=50)
        try:
            unpack(archive, place / "out", limits)
        except AutoPeftError:
            assert set(place.iterdir()) == before, "something was left behind"
            raise
        inside = list((place / "out").rglob("*"))
        assert set(place.iterdir()) == before | {place / "out"}, "something was written outside"
        assert not [path for path in inside if path.is_symlink() or not (path.is_file() or path.is_dir())]
        assert sum(path.stat().st_size for path in inside if path.is_file()) <= limits.bytes

    def adapter_archive(self, place: Path, rng: Random) -> None:
        """An adapter out of an archive."""
        pack(self._made.folder / "adapter", place / "a.zip")
        (place / "a.zip").write_bytes(mutated_bytes((place / "a.zip").read_bytes(), rng))
        load(place / "a.zip")

    # -- studies -----------------------------------------------------------------------------------------------------

    def study_json(self, place: Path, rng: Random) -> None:
        """study.json of a study without a database, which `repair` rebuilds from it."""
        folder = self._study(place)
        for path in folder.glob("study.sqlite*"):
            path.unlink()
        self._mutate_sealed(folder / "study.json", "definition", rng)
        with Study.rebuild(folder) as study:
            self._use(study)

    def study_database(self, place: Path, rng: Random) -> None:
        """study.sqlite with changed bytes and pages, to a reader and to a writer."""
        folder = self._study(place)
        path = folder / "study.sqlite"
        content = path.read_bytes()
        path.write_bytes(_mutated_pages(content, rng) if rng.random() < 0.6 else mutated_bytes(content, rng))
        for readonly in (True, False):
            with Study.open(folder, readonly=readonly) as study:
                self._use(study)

    def study_records(self, place: Path, rng: Random) -> None:
        """study.sqlite whose records say something else, under checksums that match."""
        folder = self._study(place)
        _mutate_record(folder / "study.sqlite", rng)
        with Study.open(folder, readonly=True) as study:
            self._use(study)
        with Study.open(folder) as study:
            study.front  # noqa: B018

    def study_verbs(self, place: Path, rng: Random) -> None:
        """The verbs that read a study, on records that say something else."""
        folder = self._study(place)
        _mutate_record(folder / "study.sqlite", rng)
        verb = rng.choice((("status",), ("pareto",), ("show", "0"), ("show", "9"), ("show", "best"), ("report",)))
        flags = rng.choice(((), ("--json",)))
        self._verb(verb[0], folder, *verb[1:], *flags)

    def repair_verb(self, place: Path, rng: Random) -> None:
        """`autopeft repair` on a study with one mutated file."""
        folder = self._study(place)
        path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        self._verb("repair", folder, *rng.choice(((), ("--check",))))

    def trial_json(self, place: Path, rng: Random) -> None:
        """trial.json and the files it lists."""
        folder = shutil.copytree(self._made.folder / "study" / "trials", place / "trials")
        self._mutate_sealed(folder / "0003" / "trial.json", "trial", rng)
        folders = TrialFolders(place)
        try:
            folders.read(3)
        except ValueError as error:
            raise StudyError(str(error)) from None  # its callers set the folder apart, with that reason
        folders.files(3)

    def study_checkpoint(self, place: Path, rng: Random) -> None:
        """checkpoint.json and the files of a study's checkpoint."""
        shutil.copytree(self._made.folder / "study" / "checkpoints", place / "checkpoints")
        self._mutate_sealed(place / "checkpoints" / "0000" / "checkpoint.json", None, rng)
        with Study.open(self._made.folder / "study", readonly=True) as study:
            trial = study.trials[0]
        found = Checkpoints(place)
        if not found.read(trial):
            raise StudyError("it begins anew")

    def study_archive(self, place: Path, rng: Random) -> None:
        """`autopeft show` on an archive of a study."""
        pack(self._made.folder / "study", place / "s.tar.gz")
        raw = gzip.decompress((place / "s.tar.gz").read_bytes())
        (place / "s.tar.gz").write_bytes(gzip.compress(mutated_bytes(raw, rng), 1))
        self._verb("show", place / "s.tar.gz", "3")

    # -- training ----------------------------------------------------------------------------------------------------

    def training_checkpoint(self, place: Path, rng: Random) -> None:
        """The state of a training run, with digests that match or do not."""
        files = dict(self._made.checkpoint)
        if rng.random() < 0.5:
            told = json.loads(files[checkpoint.STATE])
            told.pop("digest")
            told = mutated_json(told, rng)
            if isinstance(told, dict):
                try:
                    told["digest"] = checkpoint._digest(told)
                except (ValueError, TypeError, RecursionError):
                    told["digest"] = ""
            files[checkpoint.STATE] = dumped(told)
        else:
            files[checkpoint.TENSORS] = _mutated_safetensors(files[checkpoint.TENSORS], rng)
            told = json.loads(files[checkpoint.STATE])
            told.pop("digest")
            told["sha256"] = hashlib.sha256(files[checkpoint.TENSORS]).hexdigest()
            files[checkpoint.STATE] = dumped({**told, "digest": checkpoint._digest(told)})
        state, _, _ = checkpoint.unpack(files, checkpoint.identity_of(some_job()))
        injection, head, schedule = _training()
        require_fit(state, trained_parameters(injection, head), schedule)

    # -- backbones ---------------------------------------------------------------------------------------------------

    def backbone_config(self, place: Path, rng: Random) -> None:
        """config.json of a backbone: described, then loaded."""
        folder = self._backbone(place)
        self._mutate_json(folder / "config.json", rng)
        load_backbone(describe_backbone(str(folder)))

    def backbone_weights(self, place: Path, rng: Random) -> None:
        """model.safetensors of a backbone."""
        folder = self._backbone(place)
        path = folder / "model.safetensors"
        path.write_bytes(_mutated_safetensors(path.read_bytes(), rng))
        load_backbone(describe_backbone(str(folder)))

    def backbone_index(self, place: Path, rng: Random) -> None:
        """model.safetensors.index.json of a backbone in several files."""
        folder = self._backbone(place)
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        weights = {
            "metadata": {"total_size": 1},
            "weight_map": {"embeddings.word_embeddings.weight": "part.safetensors"},
        }
        path = folder / "model.safetensors.index.json"
        path.write_bytes(dumped(weights))
        self._mutate_json(path, rng)
        describe_backbone(str(folder))

    def tokenizer(self, place: Path, rng: Random) -> None:
        """tokenizer.json or tokenizer_config.json of a backbone."""
        folder = self._backbone(place)
        self._mutate_json(folder / rng.choice(("tokenizer.json", "tokenizer_config.json")), rng)
        load_tokenizer(describe_backbone(str(folder)))

    # -- parts -------------------------------------------------------------------------------------------------------

    def _study(self, place: Path) -> Path:
        return Path(shutil.copytree(self._made.folder / "study", place / "s"))

    def _backbone(self, place: Path) -> Path:
        return Path(shutil.copytree(self._made.folder / "backbone", place / "b"))

    def _mutate_json(self, path: Path, rng: Random) -> None:
        content = path.read_bytes()
        changed = dumped(mutated_json(json.loads(content), rng)) if rng.random() < 0.75 else mutated_bytes(content, rng)
        path.write_bytes(changed)

    def _mutate_sealed(self, path: Path, part: str | None, rng: Random) -> None:
        """Mutates a sealed file, mostly in one of its parts, and seals it again; or mutates its bytes."""
        if rng.random() < 0.2:
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
            return
        told = json.loads(path.read_text())
        told.pop("checksum")
        if part is not None and rng.random() < 0.8:
            told[part] = mutated_json(told[part], rng)
        else:
            told = mutated_json(told, rng)
        try:
            seal = checksum(told)
        except (ValueError, TypeError, RecursionError):
            seal = "0" * 64
        path.write_bytes(dumped({**told, "checksum": seal} if isinstance(told, dict) else told))

    def _use(self, study: Study) -> None:
        """What the reading verbs do."""
        study.definition.problem()
        for trial in study.trials:
            trial.configuration.id  # noqa: B018
        study.events  # noqa: B018
        study.damaged  # noqa: B018
        render(summarise(study))

    def _verb(self, *arguments: object) -> None:
        done = self._cli.invoke(app, [str(a) for a in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert "Traceback" not in done.stderr, done.stderr
        if done.exit_code == 2:
            raise StudyError(done.stderr)
        assert done.exit_code in (0, 1), done.stderr


def _mutated_safetensors(content: bytes, rng: Random) -> bytes:
    """Changes the header's JSON and keeps its length true, or changes bytes anywhere."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header = dumped(mutated_json(json.loads(content[8 : 8 + length]), rng))
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _mutated_pages(content: bytes, rng: Random) -> bytes:
    """Swaps, repeats, zeroes or fills pages of a database, or bends a number in the header of one."""
    size = int.from_bytes(content[16:18], "big") or 4096
    size = 65536 if size == 1 else size
    pages = [content[i : i + size] for i in range(0, len(content), size)]
    for _ in range(rng.choice((1, 2, 4))):
        i, j, kind = rng.randrange(len(pages)), rng.randrange(len(pages)), rng.randrange(6)
        if kind == 0:
            pages[i], pages[j] = pages[j], pages[i]
        elif kind == 1:
            pages[i] = pages[j]
        elif kind == 2:
            pages[i] = bytes(size)
        elif kind == 3:
            pages[i] = bytes(rng.randrange(256) for _ in range(64)) * (size // 64)
        elif kind == 4:
            at = rng.choice((0, 1, 3, 5, 7, 8, 16, 18, 24, 28, 44, 56, 60, 100, 101, 103, 105))
            pages[i] = pages[i][:at] + bytes([rng.randrange(256)]) + pages[i][at + 1 :]
        else:
            del pages[i]
            pages = pages or [b""]
    return b"".join(pages)


def _mutate_record(path: Path, rng: Random) -> None:
    """Makes one row say something else, and seals it."""
    connection = sqlite3.connect(path)
    try:
        table, key = rng.choice((("trials", "number"), ("trials", "number"), ("events", "id"), ("meta", "id")))
        rows = connection.execute(f"SELECT {key}, record FROM {table}").fetchall()
        number, record = rng.choice(rows)
        told = json.loads(record)
        inner = rng.choice([None, *(k for k, v in told.items() if isinstance(v, dict | list))])
        if inner is not None:
            told[inner] = mutated_json(told[inner], rng)
        else:
            told = mutated_json(told, rng)
        try:
            record = canonical(told)
            seal = digest(record)
        except (ValueError, TypeError, RecursionError):  # NaN is no JSON of ours, half a character no text
            record = json.dumps(told)
            seal = digest(record)
        connection.execute(f"UPDATE {table} SET record = ?, checksum = ? WHERE {key} = ?", (record, seal, number))
        connection.commit()
    finally:
        connection.close()


def _odd_archive(archive: Path, rng: Random) -> None:
    names = (
        "a",
        "b/c",
        "../x",
        "/x",
        "a/../../x",
        "",
        ".",
        "a" * 300,
        "é",
        "a\n",
        "b",
        "b/",
        "C:x",
        "a\\b",
        "x/" * 30,
        "a\0b",
    )
    kinds = (
        *(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE),
        *(tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME),
    )
    count = rng.choice((1, 2, 5, 60))
    contents = (b"", b"x", b"30 path=../../evil\n", b"20 size=99999999\n", bytes(1 << 20), b"9" * 600)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for _ in range(count):
                info = zipfile.ZipInfo(rng.choice(names) or "x")
                info.create_system, info.external_attr = (
                    3,
                    rng.choice((0o100644, 0o120777, 0o040755, 0, 0o020666)) << 16,
                )
                target.writestr(info, rng.choice(contents))
        return
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w", format=rng.choice((0, 1, 2))) as tar:
        for _ in range(count):
            member = tarfile.TarInfo((rng.choice(names) or "x")[:90])
            member.type, member.linkname = rng.choice(kinds), rng.choice(names)[:90]
            member.mode, member.uid = rng.choice((0o644, 0o4777, 0)), rng.choice((0, 1000))
            member.pax_headers = rng.choice(({}, {"path": "../x"}, {"GNU.sparse.major": "1"}, {"size": "-1"}))
            content = rng.choice(contents)
            member.size = len(content) if rng.random() < 0.9 else rng.choice((0, 10**9, len(content) + 5))
            try:
                tar.addfile(member, io.BytesIO(content))
            except (ValueError, OSError):
                continue
