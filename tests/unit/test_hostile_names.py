"""Names that would be paths, markup, commands of a terminal: refused or shown as what they are."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autopeft.adapters import Adapter
from autopeft.adapters.card import model_card
from autopeft.cli import app
from autopeft.configuration import Configuration
from autopeft.job import SILENT, Job, Outcome, Report
from autopeft.report.html import render
from autopeft.report.summary import summarise
from autopeft.report.svg import anytime_svg, curves_svg, front_svg
from autopeft.setting import Backbone
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.folders import TrialFolders, require_files
from autopeft.study.study import Study
from autopeft.tasks.base import TaskSource
from autopeft.trial import Budget, Failure, Proposal, Trial, TrialStatus
from tests.contracts.cheap_jobs import SHAPE, TASK, formula, setting
from tests.contracts.cheap_studies import definition

# -- names that could become paths -------------------------------------------------------------------------------------
from tests.hostile import save_backbone, small_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return small_adapter(save_backbone(tmp_path_factory.mktemp("backbone")))


@pytest.fixture
def cli() -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("study", ["../../x", "runs/../../x", "..", "..\\x"])
@pytest.mark.parametrize("verb", ["validate", "plan", "search"])
def test_a_settings_file_cannot_put_the_study_elsewhere(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str, verb: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    Path("theirs.yaml").write_text(json.dumps({"study": study, "task": {"train": "demo"}, "backbone": "demo"}))
    before = sorted(tmp_path.rglob("*"))
    done = cli(verb, "theirs.yaml")
    assert done.exit_code == 2
    assert "theirs.yaml, study: the file puts the study outside this directory" in done.stderr
    assert "say --study" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_typed_by_the_user_is_the_users(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    Path("mine.yaml").write_text(json.dumps({"study": "../x", "search": {"trails": 1}}))
    done = cli("validate", "mine.yaml", "--study", "../y")
    assert "unknown key 'trails'" in done.stderr  # it got past the check of the study


@pytest.mark.parametrize("address", ["ray://evil.example:10001", "10.0.0.1:6379"])
def test_a_settings_file_cannot_name_a_cluster(cli: Callable[..., Any], tmp_path: Path, address: str) -> None:
    # Messages of a cluster are unpickled here: whoever runs it, runs code here.
    (tmp_path / "theirs.yaml").write_text(json.dumps({"search": {"executor": "ray", "address": address}}))
    done = cli("search", tmp_path / "theirs.yaml")
    assert done.exit_code == 2
    assert "search.address: the file names a cluster" in done.stderr


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "", ".", "..", "a\\x", "a\0x", "trial.json", "a\nx"])
def test_files_of_a_trial_stay_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name for a file of a trial"):
        require_files({name: b""})


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    folders = TrialFolders(tmp_path)
    made = Trial(0, Proposal(Configuration(), Budget(0, 1), 0), TrialStatus.FAILED, failure=Failure("error", "x"))
    folders.write(made, {"a": b"1"})
    for name in ("a", "trial.json"):
        (tmp_path / "trials" / "0000" / name).unlink()
        os.mkfifo(tmp_path / "trials" / "0000" / name)
        with pytest.raises(ValueError, match="it is no plain file"):
            folders.read(0)


def aliases(depth: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    return "\n".join([*lines, *(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, depth))])


@pytest.mark.parametrize(
    ("text", "says"),
    [(aliases(60), "stands for more than"), ("a: &a [*a]", "stands for more than"), ("[" * 5000, "too deeply"),
     ("!!python/object/apply:os.system [true]", "is not YAML"), ("a: 2001-99-99", "cannot be read"),
     ("seed: " + "9" * 5000, "cannot be read"), ("a: " + "x" * (1 << 20), "larger than"),
     ("a: !!int x", "cannot be read")],
)  # fmt: skip
def test_hostile_yaml_is_refused(cli: Callable[..., Any], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    done = cli("validate", tmp_path / "theirs.yaml")
    assert (done.exit_code, "Traceback" in done.stderr) == (2, False)
    assert says in done.stderr


# -- HTML, SVG, Markdown and terminals ---------------------------------------------------------------------------------
EVIL = "</td></title></script></svg><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}]]>\x1b[2J"


def harmless(value: str) -> str:
    return "name"


def hostile(value: str) -> str:
    return f"{EVIL}{value}"


def named_study(folder: Path, name: Callable[[str], str]) -> Study:
    """A study in which every name that a user or a stranger can choose is made by `name`."""
    source = TaskSource(train=name("a.csv"), text=name("text"), label=name("label"), text_pair=name("pair"))
    task = {**TASK, "labels": [name("bad"), name("good")], "source": vars(source).copy(), "metric": name("accuracy")}
    made = replace(
        setting(), backbone=Backbone(name("backbone"), "0" * 64, SHAPE, name("main")), source=source, task=task
    )
    probe = Configuration()
    baselines = (
        (name("probe@0.001"), probe),
        ("second", replace(probe, training=replace(probe.training, learning_rate=0.1))),
    )

    def job(one: Job, report: Report = SILENT) -> Outcome:
        if one.number == 5:
            raise ValueError(name("failure"))
        return replace(formula(one), detail={**formula(one).detail, "curve": [1.0, 0.5]})

    study = Study.start(
        folder, definition(setting=made, baselines=baselines, trials=8, versions={name("torch"): name("2")})
    )
    study.run(executor=InlineExecutor(job))
    study.train(study.front.trials[0].number, 2, executor=InlineExecutor(job))
    return study


class Skeleton(HTMLParser):
    """What a browser would build: elements with the names of their attributes, without any text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append(f"<{tag} {' '.join(sorted(name for name, _ in attrs))}>")
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(f"</{tag}>")
        self._script = False

    def handle_comment(self, data: str) -> None:
        self.parts.append("<!---->")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Study]]:
    folder = tmp_path_factory.mktemp("names")
    with (
        named_study(folder / "plain", harmless) as plain,
        named_study(folder / "<img src=x onerror=alert(3)>", hostile) as evil,
    ):
        yield plain, evil


def test_names_change_no_element_of_the_report(studies: tuple[Study, Study]) -> None:
    plain, evil = (Skeleton(render(summarise(study))) for study in studies)
    assert evil.parts == plain.parts
    assert evil.scripts == plain.scripts
    page = render(summarise(studies[1]))
    assert "{{7*7}}" in page  # a template of templates would have made 49 of it
    assert page.count("&lt;script&gt;alert(1)") > 10


@pytest.mark.parametrize("picture", [front_svg, anytime_svg, curves_svg])
def test_names_change_no_element_of_a_picture(studies: tuple[Study, Study], picture: Callable[..., str]) -> None:
    plain, evil = (ElementTree.fromstring(picture(summarise(study))) for study in studies)
    assert [(e.tag, sorted(e.attrib)) for e in evil.iter()] == [(e.tag, sorted(e.attrib)) for e in plain.iter()]


MARKDOWN = [
    "[click](https://evil.example/x)", "![pixel](https://evil.example/x.png)", "<https://evil.example/x>",
    "https://evil.example/x", "www.evil.example", "[a]: https://evil.example", "`code`", "a | b", "\\[x](y)",
    "a\n\n# Heading", "a\n---\nbase_model: evil", "<img src=x>", "```\nimport os",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKDOWN)
def test_names_make_no_markup_in_a_card(adapter: Adapter, text: str) -> None:
    named = replace(
        adapter,
        labels=(text, "good"),
        reference=text.replace("/", ":"),
        revision=text,
        provenance={
            "metric": text, "scores": {text: 0.5}, "versions": {text: text},
            "data": {"train": text, "sizes": {text: 3}},
        },
    )  # fmt: skip
    plain = replace(
        adapter,
        reference="name",
        provenance={
            "metric": "m", "scores": {"v": 0.5}, "versions": {"a": "b"}, "data": {"train": "d", "sizes": {"t": 3}}
        },
    )  # fmt: skip
    card, known = (model_card(one.configuration, one.config()).splitlines() for one in (named, plain))
    assert len(card) == len(known)
    for line, expected in zip(card, known, strict=True):
        if line.startswith(("| ", "# Adapter")):
            assert not set("[]`<>\\") & set(line)
            assert "://" not in line
            assert "www." not in line
            assert line.count("|") == expected.count("|")
        else:  # YAML and Python quote what stands in them
            assert line == expected or json.dumps(text.replace("/", ":")) in line


def test_names_do_not_command_a_terminal(studies: tuple[Study, Study], cli: Callable[..., Any]) -> None:
    path = studies[1].path
    for arguments in (
        ("status", path),
        ("show", path, "5"),
        ("pareto", path),
        ("show", path, "0"),
        ("show", path, "x\x1b[2J"),
    ):
        done = cli(*arguments)
        assert "\x1b" not in done.output, arguments
    assert "\\x1b[2J" in cli("show", path, "5").output
