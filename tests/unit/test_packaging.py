"""The packaging files agree with each other: pins, ranges, version, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import autopeft

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in pairs}


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["dev"], *EXTRAS["peft"]])
def test_each_requirement_of_the_environment_is_pinned_within_its_range(text: str) -> None:
    requirement = Requirement(text)
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)


def test_pins_are_exact_and_carry_no_local_label() -> None:
    odd = {name: pinned for name, pinned in pins().items() if not re.fullmatch(r"[0-9][0-9a-z.]*", pinned)}
    assert odd == {}


def test_dev_and_core_agree_on_the_ranges_they_share() -> None:
    ranges: dict[str, set[str]] = {}
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]:
        ranges.setdefault(Requirement(text).name, set()).add(str(Requirement(text).specifier))
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == autopeft.__version__
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Zhou", "Wan", "Vulić", "Korhonen"]
    assert "arXiv:2301.12132" in [identifier["value"] for identifier in paper["identifiers"]]


def test_the_make_file_installs_the_demo_weights_that_the_extra_names() -> None:
    assert f"--no-deps {EXTRAS['demo'][0]};" in (ROOT / "Makefile").read_text(encoding="utf-8")
