"""Archives that strangers made are refused or come out whole; archives of ours are the same each time."""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - to make what must never be opened
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autopeft.adapters import Adapter, load
from autopeft.archives import SUFFIXES, Limits, pack, unpack, unpacked
from autopeft.cli import app
from autopeft.errors import InputError
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.study import Study
from tests.contracts.cheap_jobs import formula
from tests.contracts.cheap_studies import definition
from tests.hostile import Malicious, save_backbone, small_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return small_adapter(save_backbone(tmp_path_factory.mktemp("backbone")))


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def zip_of(path: Path, *members: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a member twice
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.filename = info.orig_filename = name  # as it is, whatever ZipInfo makes of it
            info.create_system, info.external_attr = 3, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


FILE, LINK, DEVICE, FIFO = 0o100644, 0o120777, 0o020666, 0o010644
OUTSIDE = ["../x", "a/../../x", "/x", "/etc/x", "a\\..\\..\\x", "\\x", "C:/x", "C:x"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    archive = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        zip_of(archive, ("good", b"1", FILE), (name, b"2", FILE))
    else:
        tar_of(archive, (member("good"), b"1"), (member(name), b"2"))
    refused(archive, tmp_path, "leads out of the folder")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "\udcff", "."])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    refused(tar_of(tmp_path / "a.tar", (member("good"), b"1"), (member(name), b"2")), tmp_path, "is not")


@pytest.mark.parametrize(
    ("kind", "target"),
    [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "good"), (tarfile.LNKTYPE, "good"),
     (tarfile.LNKTYPE, "/etc/passwd"), (tarfile.CHRTYPE, ""), (tarfile.BLKTYPE, ""), (tarfile.FIFOTYPE, ""),
     (tarfile.CONTTYPE, ""), (b"Z", "")],
)  # fmt: skip
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    archive = tar_of(tmp_path / "a.tar", (member("good"), b"1"), (member("bad", kind, target), b""))
    refused(archive, tmp_path, "a link, a device or something else")


@pytest.mark.parametrize("mode", [LINK, DEVICE, FIFO, 0o140644])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    archive = zip_of(tmp_path / "a.zip", ("good", b"1", FILE), ("bad", b"/etc/passwd", mode))
    refused(archive, tmp_path, "a link, a device or something else")


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "a.tar", (member("x"), b"1"), (member("./x"), b"2")), tmp_path, "twice")
    refused(zip_of(tmp_path / "a.zip", ("x", b"1", FILE), ("x", b"2", FILE)), tmp_path, "twice")


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "a.tar", (member("x"), b"1"), (member("x/y"), b"2")), tmp_path, "cannot be unpacked")


BOMB = Limits(bytes=1 << 20, members=20)


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_bomb_of_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    zeros = bytes(1 << 24)
    archive = tmp_path / f"a{suffix}"
    made = zip_of(archive, ("x", zeros, FILE)) if suffix == ".zip" else tar_of(archive, (member("x"), zeros))
    assert made.stat().st_size < BOMB.bytes / 10
    refused(made, tmp_path, "unpacks to more than", BOMB)
    assert unpack(made, tmp_path / "out", Limits()).joinpath("x").stat().st_size == 1 << 24


def test_a_bomb_of_many_members_is_refused(tmp_path: Path) -> None:
    many = [f"x{i}" for i in range(BOMB.members + 1)]
    refused(zip_of(tmp_path / "a.zip", *((n, b"", FILE) for n in many)), tmp_path, "more than 20 members", BOMB)
    refused(tar_of(tmp_path / "a.tar.gz", *((member(n), b"") for n in many)), tmp_path, "more than 20 members", BOMB)


def test_a_zip_that_states_another_size_is_refused(tmp_path: Path) -> None:
    content = zip_of(tmp_path / "a.zip", ("x", bytes(1000), FILE)).read_bytes()
    stated = (1000).to_bytes(4, "little")
    assert content.count(stated) == 2  # the local and the central header
    (tmp_path / "a.zip").write_bytes(content.replace(stated, (10).to_bytes(4, "little")))
    refused(tmp_path / "a.zip", tmp_path, "cannot be unpacked")


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    # A pax header is read whole before anything is said about it: 16 MiB of zeros, 16 kB in the archive.
    header = tar_of(tmp_path / "a.tar.gz", (member("x", tarfile.XHDTYPE), bytes(1 << 24)))
    refused(header, tmp_path, "a header takes more than", Limits(bytes=1 << 26))


@pytest.mark.parametrize("changes", [{"name": "a" * 201}, {"name": "/".join("abcdefghi")}])
def test_long_and_deep_names_are_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    refused(tar_of(tmp_path / "a.tar", (member(changes["name"]), b"")), tmp_path, "longer than 200 bytes or 8 parts")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cut", [0.3, 0.5])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, cut: float) -> None:
    archive = packed(tmp_path, suffix)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * cut)])
    refused(archive, tmp_path, "cannot be unpacked|cut short")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = packed(tmp_path, ".tar")
    content = bytearray(archive.read_bytes())
    second = content.index(b"b/c")
    content[second + 120] ^= 1
    archive.write_bytes(content)
    refused(archive, tmp_path, "damaged or cut short")


def refused(archive: Path, tmp_path: Path, says: str, limits: Limits = Limits()) -> None:  # noqa: B008
    """The archive is refused, and nothing is left: not the folder, not a part of it, nothing beside it."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=says):
        unpack(archive, tmp_path / "unpacked", limits)
    assert sorted(tmp_path.rglob("*")) == before


def packed(tmp_path: Path, suffix: str) -> Path:
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(range(256)) * 40)
    (folder / "b" / "c").write_bytes(b"second")
    return pack(folder, tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_packed_comes_out_again(tmp_path: Path, suffix: str) -> None:
    out = unpack(packed(tmp_path, suffix), tmp_path / "out")
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {
        "a": bytes(range(256)) * 40,
        "b/c": b"second",
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_folders_give_equal_archives(tmp_path: Path, suffix: str) -> None:
    first = packed(tmp_path, suffix).read_bytes()
    for path in (tmp_path / "folder").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert pack(tmp_path / "folder", tmp_path / f"other{suffix}").read_bytes() == first


def test_links_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="only plain files can be packed"):
        pack(tmp_path / "folder", tmp_path / "a.tar")


def test_nothing_is_unpacked_over_what_is_there(tmp_path: Path) -> None:
    archive = packed(tmp_path, ".zip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("top", ["", "reviews"])
def test_an_adapter_loads_from_an_archive(adapter: Adapter, tmp_path: Path, top: str) -> None:
    adapter.save(tmp_path / "folder" / top)
    loaded = load(pack(tmp_path / "folder", tmp_path / "a.tar.gz"))
    assert loaded.files() == adapter.files()


def test_a_pickle_in_an_archive_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    (adapter.save(tmp_path / "folder") / "adapter_model.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "mark")))
    with pytest.raises(InputError, match="is a pickle, which"):
        load(pack(tmp_path / "folder", tmp_path / "a.zip"))
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "reviews"
    with Study.start(folder, definition(trials=3)) as made:
        made.run(executor=InlineExecutor(formula))
    return folder


def verb(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*(str(a) for a in arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_export_writes_the_files_of_a_trial_into_an_archive(study: Path, tmp_path: Path, suffix: str) -> None:
    told = verb("export", study, "best", "--out", tmp_path / "new" / f"a{suffix}")
    assert told["files"] == ["adapter.safetensors"]
    inside = unpack(tmp_path / "new" / f"a{suffix}", tmp_path / "out")
    kept = study / "trials" / f"{told['trial']:04d}" / "adapter.safetensors"
    assert (inside / "adapter.safetensors").read_bytes() == kept.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a{suffix}"]


def test_show_reads_a_study_out_of_an_archive(study: Path, tmp_path: Path) -> None:
    archive = pack(study, tmp_path / "s.tar.gz")
    told, known = verb("show", archive, "1"), verb("show", study, "1")
    assert told["folder"] == "trials/0001"
    assert told["command"] == "autopeft train UNPACKED 1 --same-seed"
    same = known.keys() - {"folder", "command"}
    assert {key: told[key] for key in same} == {key: known[key] for key in same}


def test_a_temporary_folder_does_not_stay(tmp_path: Path) -> None:
    with unpacked(packed(tmp_path, ".zip")) as folder:
        assert (folder / "a").exists()
    assert not folder.exists()
