"""Reports of searches: the HTML page, the table in Markdown, dependency files for Make."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from search_records import VERDICT, group_records, run_records, trial

from ingot.errors import UsageError
from ingot.reports.comparison import comparison_rows
from ingot.reports.depfile import depfile
from ingot.reports.html import search_report
from ingot.reports.markdown import comparison_markdown

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "compress"
EVIL = '<script>alert("1")</script>&\x1b]0;x\x07'
VOID = {"meta", "link", "br", "img", "input", "hr"}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


class Page(HTMLParser):
    """Checks that every element is closed, and gathers elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def count(self, tag: str, class_: str) -> int:
        return sum(
            name == tag and class_ in (attrs.get("class") or "").split()
            for name, attrs in self.elements
        )


def checked(records, verdict) -> Page:
    """Render a page, and check what holds of every one: it is whole, safe, and needs no network."""
    text = search_report(records, verdict)
    page = Page(text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not {"src", "href", "onload", "onclick"} & attributes.keys()
    assert not re.search(r"url\(|@import|\bnan\b|\binf\b", text, re.IGNORECASE)
    return page


def curves(page: Page) -> int:
    return sum(tag == "polyline" for tag, _ in page.elements)


RECORDS = [
    *run_records(),
    group_records(conv1=16, conv2=64),
    trial("1", "", "accepted", 8000, 0.4, {"conv1": (12, 16)}),
    trial("2", "1", "missed", 5000, 1.7, {"conv1": (4, 16)}),
    trial("3", "1", "accepted", 6000, 0.6, {"conv2": (32, 64)}),
    trial("4", "3", "failed", None, None, {}, reason="out of memory"),
]


def test_a_finished_search_shows_everything():
    page = checked(RECORDS, VERDICT)

    assert "1.60x smaller" in page.text
    for said in ("reference", "0.0477 MB", "1.67x", "opt_model.onnx", "torch2.9", "level"):
        assert said in page.text
    assert page.count("g", "reference") >= 1
    assert page.count("g", "result") >= 1
    assert page.count("line", "limit") == 1
    # Two trials and one in the legend; and a line of training each, of two.
    assert page.count("g", "s-accepted") == 2 + 1 + 2
    assert "1 trial was not measured" in page.text
    assert "out of memory" in page.text


def test_channels_come_from_the_result_and_the_steps_before_it():
    page = checked(RECORDS, VERDICT)

    assert "12 of 16" in page.text
    assert "32 of 64" in page.text
    assert "4 of 16" not in page.text


@pytest.mark.parametrize("length", range(len(RECORDS) + 1))
def test_a_search_that_goes_on_can_be_shown_at_any_moment(length):
    page = checked(RECORDS[:length], None)

    assert "unfinished" in page.text


def test_a_search_without_a_result_says_why():
    nothing = dict.fromkeys(("optimized", "drop", "drop_interval", "size_ratio"))
    reason = "every candidate is larger"
    verdict = {**VERDICT, **nothing, "verdict": "missed", "reason": reason}
    page = checked(RECORDS[:3], verdict)

    assert page.text.count("every candidate is larger") == 1
    assert page.count("header", "missed") == 1
    assert "There is no trial" in page.text


def test_the_verdict_in_the_journal_is_enough():
    ended = [*RECORDS, {"kind": "verdict", "name": "", "document": VERDICT}]

    assert search_report(ended, None) == search_report(ended, VERDICT)


def test_what_is_no_number_is_left_out():
    records = [
        *run_records(),
        trial("1", "", "accepted", 8000, 0.4, {}, losses=[1.0, None, 0.5, 0.4, math.nan]),
        trial("2", "", "failed", math.nan, math.inf, {}, losses=[None]),
        trial("3", "", "missed", 0, 99.0, {}, losses=[math.inf, 0.2]),
    ]
    page = checked(records, None)

    assert curves(page) == 1
    assert "beyond the axis" in page.text


def test_latency_is_drawn_when_it_is_the_target():
    records = [*run_records(target="latency"), trial("1", "", "slower", 8000, 0.1, {}, latency=2.0)]
    page = checked(records, {**VERDICT, "target": "latency"})

    assert "latency (ms)" in page.text
    assert "1.25x faster" in page.text


def test_names_from_outside_cannot_write_the_page():
    run = run_records(model=EVIL, key=EVIL)
    records = [
        *run,
        group_records(**{EVIL: 8}),
        trial(EVIL, EVIL, EVIL, 8000, 0.4, {EVIL: (4, 8)}, reason=EVIL, key=EVIL),
    ]
    records[0]["settings"] = {EVIL: EVIL}
    verdict = {**VERDICT, **dict.fromkeys(("eval_key", "reason", "run_dir"), EVIL)}
    verdict |= {"warnings": [EVIL], "versions": {EVIL: EVIL}}
    verdict["artifacts"] = [{"path": EVIL, "format": EVIL}]
    for page in (checked(records, verdict), checked(records, None)):
        assert '<script>alert("1")</script>' in page.text
        assert "\x1b" not in page.text


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accepted", "missed", "rejected early", "slower", "failed", "?"]),
            st.none() | st.floats() | st.integers(0, 10**12),
            st.none() | st.floats(),
            st.lists(st.none() | st.floats(), max_size=4),
        ),
        max_size=6,
    ),
    st.none() | st.floats(0, 1e9),
)
def test_any_numbers_make_a_page(found, delta):
    records = run_records(delta=delta)
    for number, (status, parameters, drop, losses) in enumerate(found):
        records.append(trial(str(number), "", status, parameters, drop, {}, losses=losses))

    checked(records, None)


def test_markdown_has_one_row_a_measure_and_nothing_that_renders():
    verdict = {**VERDICT, "warnings": ["a|b <img src=x> @all [x](http://y)"], "model": EVIL}
    text = comparison_markdown(verdict)

    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| accuracy | 98.0000 | 97.4000 | -0.6000 |" in rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert len(comparison_rows(verdict)) == 5
    assert "<" not in text
    assert "http://" not in text


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-rR", "-f", "rules", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "LC_ALL": "C"},
    )


names = st.text(st.sampled_from("ab \\$#:%|&=*?[]~!(){}'\"<>`^,@+-é"), min_size=1, max_size=8).map(
    lambda text: "n" + text
)


@needs_make
@settings(max_examples=60, deadline=None)
@given(names, st.lists(names, min_size=1, max_size=3, unique=True))
def test_make_reads_the_names_that_were_meant(tmp_path_factory, target, sources):
    try:
        text = depfile([Path(target)], [Path(source) for source in sources])
    except UsageError:
        return
    folder = tmp_path_factory.mktemp("depfile")
    (folder / "rules").write_text(text, encoding="utf-8")
    for source in sources:
        (folder / source).touch()

    database = make(folder, "-pq").stdout

    expected = " ".join(source for source in sources if source != target)
    assert f"{target}: {expected}".rstrip() in [line.rstrip() for line in database.splitlines()]


@needs_make
@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "a#b", "a:b", "$HOME", "lr=0.1", "50%", "a|b", "back\\slash", "\\ x"],
)
def test_a_change_of_a_source_makes_the_target_anew_and_its_loss_is_no_error(tmp_path, name):
    folder, source = tmp_path / "work", f"source {name}"
    folder.mkdir()
    target = f"target {name}"
    rules = depfile([Path(target)], [Path(source)])
    recipe = rules.split("\n\n")[0] + "\n\ttouch made\n\n" + "\n\n".join(rules.split("\n\n")[1:])
    (folder / "rules").write_text(recipe, encoding="utf-8")
    (folder / source).touch()
    (folder / target).touch()

    # A name with "=" on the command line would be a variable, and one with "%" is no default goal.
    goal = [] if "=" in name else ["--", target]
    assert make(folder, "-q", *goal).returncode == 0
    (folder / source).unlink()
    done = make(folder, "-s", *goal)

    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "made").exists()


@pytest.mark.parametrize(
    ("target", "source"),
    [("a\nb", "c"), ("a;b", "c"), ("a", "b "), ("a*", "b"), ("a", "b\\"), ("a", "b (1)")],
)
def test_names_that_make_cannot_say_are_refused(target, source):
    with pytest.raises(UsageError, match="expected a name that Make can say"):
        depfile([Path(target)], [Path(source)])


def test_a_source_is_named_once_and_is_never_its_own_target():
    text = depfile([Path("out")], [Path("in"), Path("./in"), Path("out")])

    assert text == "out: \\\n  in\n\nin:\n"
    assert depfile([Path("out")], []) == "out:\n"


@needs_make
def test_the_example_makefile_runs_every_step_in_order(tmp_path):
    folder = tmp_path / "compress"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))

    def steps() -> list[str]:
        done = subprocess.run(
            ["make", "-n"], cwd=folder, capture_output=True, text=True, check=True
        )
        return [words.split()[1] for words in done.stdout.splitlines() if "ingot " in words]

    assert steps() == ["train", "compress", "package", "verify"]
    for name in ("trained/weights.safetensors", "run/verdict.json", "digits.ingot"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert steps() == ["verify"]
    (folder / "run.d").write_text(depfile([Path("run/verdict.json")], [Path("gone.py")]))
    assert steps() == ["compress", "package", "verify"]


def test_the_example_workflow_runs_compress_and_shows_the_summary():
    text = (EXAMPLE / "github-workflow.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["compress"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)

    assert "ingot compress digits.yaml" in commands
    assert '--markdown >> "$GITHUB_STEP_SUMMARY"' in commands
