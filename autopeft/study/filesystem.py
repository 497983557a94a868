"""What kind of file system a study lies on, and which journal SQLite can use there. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autopeft.errors import InputError, nearest

Journal = Literal["wal", "rollback"]

VARIABLE = "AUTOPEFT_JOURNAL"
"""Environment variable that overrides what is found here: "wal" or "rollback"."""

NETWORK = frozenset(
    (
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cephfs",
        "cifs",
        "coda",
        "curlftpfs",
        "davfs",
        "drvfs",
        "fhgfs",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "ibrix",
        "juicefs",
        "lustre",
        "mfs",
        "moosefs",
        "ncpfs",
        "nfs",
        "nfs3",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "prl_fs",
        "quobyte",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "snfs",
        "sshfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
        "wekafs",
    )
)
"""Types of file systems that other machines may write to at the same time."""

LOCAL_FUSE = frozenset(
    (
        "bindfs",
        "cryfs",
        "dislocker",
        "encfs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "fuse-overlayfs",
        "fuse2fs",
        "gocryptfs",
        "lxcfs",
        "mergerfs",
        "ntfs",
        "ntfs-3g",
        "overlayfs",
        "portal",
        "rofiles-fuse",
        "securefs",
        "squashfuse",
        "unionfs",
        "unionfs-fuse",
        "zfs-fuse",
    )
)
"""Drivers in user space (fuse.NAME) that keep files on this machine; every other one counts as a network's."""


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo.

    Attributes:
        point: Where it is mounted.
        kind: Type of file system, such as "ext4", "nfs4" or "fuse.sshfs".
    """

    point: str
    kind: str


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    r"""Parses /proc/self/mountinfo; lines that are no mounts are left out.

    Example:
        >>> parse_mountinfo("36 35 0:31 / /data\\040set rw,relatime shared:1 - nfs4 server:/export rw\n")
        (Mount(point='/data set', kind='nfs4'),)
    """
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")  # optional fields end with a lone hyphen
        fields, kinds = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and kinds[0]:
            found.append(Mount(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]), kinds[0]))
    return tuple(found)


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Returns the mount that a path without links and ".." lies on: the longest point, and of equals the last.

    Example:
        >>> mount_of("/data/runs", (Mount("/", "ext4"), Mount("/data", "nfs4"), Mount("/da", "tmpfs"))).kind
        'nfs4'
    """
    found: Mount | None = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        inside = path == point or path.startswith(point + "/")
        if inside and (found is None or len(point) >= len(found.point.rstrip("/"))):
            found = mount
    return found


def is_network(kind: str) -> bool:
    """Says whether files of a type of file system may change on other machines, or are not kept as a disk keeps them.

    Example:
        >>> [is_network(kind) for kind in ("ext4", "nfs4", "fuse.s3fs", "fuse.mergerfs", "overlay")]
        [False, True, True, False, False]
    """
    driver = kind.removeprefix("fuse.")
    return driver in NETWORK if driver == kind else driver not in LOCAL_FUSE


def filesystem_of(folder: Path) -> str | None:
    """Returns the type of file system of a folder, or None where this system does not tell."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    mount = mount_of(os.path.realpath(folder), parse_mountinfo(text))
    return mount.kind if mount else None


def journal_for(folder: Path, environment: Mapping[str, str] = os.environ) -> Journal:
    """Returns the journal for a study in a folder: a write-ahead log, or a rollback journal on a network's disk.

    A write-ahead log needs memory that all processes share, which those of several machines do not. With the rollback
    journal one process at a time can use the study, readers included.

    Args:
        folder: Of the study.
        environment: AUTOPEFT_JOURNAL in it overrides what was found: "wal" for a file system that is taken for a
            network's and is none, "rollback" for one that is not known here.

    Raises:
        InputError: The variable has another value.
    """
    asked = environment.get(VARIABLE, "")
    if asked in ("wal", "rollback"):
        return "wal" if asked == "wal" else "rollback"
    if asked:
        raise InputError(f"unknown journal '{asked}'", where=VARIABLE, cure=nearest(asked, ("wal", "rollback")))
    kind = filesystem_of(folder)
    return "rollback" if kind is not None and is_network(kind) else "wal"
