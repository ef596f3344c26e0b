"""Reports: one page that stands by itself, that everyone can use, and that obeys no name in it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import netdsl as netdsl_package
from netdsl.api.training import train
from netdsl.backends import open_backend
from netdsl.data.samples import Samples
from netdsl.inference import EvaluationReport
from netdsl.insight.draw.page import read_fragment_script
from netdsl.insight.report.comparison import compare_runs
from netdsl.insight.report.confusion import LEVELS, MAX_CLASSES, make_cells
from netdsl.insight.report.highlight import split_text
from netdsl.insight.report.mistakes import MAX_SIDE, Mistake, MistakeCollector
from netdsl.insight.report.page import render_page
from netdsl.insight.report.run_record import read_runs
from netdsl.insight.report.run_report import ReportOptions, RunReport, make_run_reports
from netdsl.insight.report.wording import format_percent, format_seconds, headline
from netdsl.text_escaping import escape_text
from netdsl.training.metrics.class_counts import count_classes
from netdsl.training.metrics.table import Score
from netdsl.training.run.tally import Predictions

NET = """
net small { input(8x8x1); stem: conv(4, 3x3, stride=2) -> relu; head: fc(10) }
data { source = digits, batch = 64, limit = 400 }
train { epochs = 2, optimizer = adam(lr=0.01) }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, in a directory whose name a page must not obey."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.net").write_text(NET)
    out = folder / "<b onclick=x>$1 & 'run'"
    train(str(folder / "small.net"), out=out, device="reference")
    return out


@pytest.fixture(scope="module")
def report(run: Path) -> RunReport:
    options = ReportOptions(mistakes=6)
    (found,) = make_run_reports([run], open_backend("reference"), options)
    return found


@pytest.fixture(scope="module")
def page(report: RunReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that compares three runs: one was not evaluated, one has long names and no curve."""
    record = replace(report.run, history=replace(report.run.history, name="again"))
    other = replace(
        report, run=record, evaluation=None, mistakes=(), filters=None, problem="no <i>data</i>"
    )
    names = [f"{'a_long_name_' * 4}{i}" for i in range(12)]
    mistake = replace(report.mistakes[0], image=f"{'folder/' * 9}x.jpg", true=(names[0],))
    third = replace(report, evaluation=make_evaluation(names), mistakes=(mistake,), filters=None)
    third = replace(third, run=replace(record, history=replace(record.history, name=names[0])))
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_bytes(render_page([report, other, bare(third)]))
    return path


# ---- what it says --------------------------------------------------------------------------------


def test_a_report_has_the_figures_of_eval(run: Path, tmp_path: Path, netdsl: Any) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(run, begun, ignore=shutil.ignore_patterns("metrics.jsonl"))  # no curves to draw
    args = ("--device", "reference", "--json")
    code, out, err = netdsl(
        "report", "begun", "-o", "r.html", "--mistakes", "3", "--no-time", *args
    )
    assert code == 0, err
    found = json.loads(out)["runs"][0]
    assert found["evaluation"] == json.loads(netdsl("eval", "begun", *args)[1])
    assert found["name"] == "begun"
    losses = [m["loss"] for m in found["mistakes"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert all(m["true"] != m["predicted"] for m in found["mistakes"])
    assert "ms" not in found["costs"]["layers"][0]
    text = Path("r.html").read_text()
    share = found["evaluation"]["accuracy"]
    assert f"classifies {share:.1%} of 359 test images of digits correctly" in text


def test_times_are_those_of_a_training_step(report: RunReport) -> None:
    costs, profile = report.costs, report.costs.profile
    assert profile is not None
    assert sum(x.seconds for x in costs.layers) == pytest.approx(profile.measurement.seconds)
    names = [x.name for x in costs.layers]
    assert (
        names[:3] == [x.name for x in costs.summary.layers] == ["stem.conv1", "stem.relu1", "head"]
    )
    assert {"stem.conv1", "head", "loss"} <= {x.name for x in costs.layers if x.seconds}
    assert profile.memory > 4 * 3 * costs.summary.params  # weights, and two means of Adam


def test_without_data_there_is_what_the_directory_gives(
    run: Path, tmp_path: Path, netdsl: Any
) -> None:
    away = tmp_path / "away"
    shutil.copytree(run, away)
    recipe = away / "recipe.net"
    for name in ("best.safetensors", "last.safetensors"):
        (away / name).unlink()
    recipe.write_text(recipe.read_text().replace("digits\n", 'folder("absent")\n'))
    code, _, err = netdsl("report", "away", "-o", "r.html", "--device", "reference", "--no-time")
    assert (code, "away was not evaluated: there is no checkpoint" in err) == (0, True)
    text = Path("r.html").read_text()
    assert "The net was not evaluated for this report: there is no checkpoint" in text
    assert "reached an accuracy of" in text
    assert text.count("<svg") >= 2  # the curves
    code, _, err = netdsl("report", str(run), "-o", "r.html", "--data", "absent")
    assert (code, "absent" in err) == (2, True)


def test_a_report_from_python(run: Path, tmp_path: Path) -> None:
    begun, out = tmp_path / "begun", tmp_path / "r.html"
    shutil.copytree(run, begun, ignore=shutil.ignore_patterns("metrics.jsonl"))
    (found,) = netdsl_package.report(begun, out, mistakes=2, time=False, device="reference")
    assert (found["epochs"], len(found["mistakes"])) == (0, 2)
    assert f"{found['evaluation']['accuracy']:.1%}" in out.read_text()
    for wrong in ({"runs": []}, {"mistakes": -1}, {"device": "tpu"}, {"data": tmp_path / "absent"}):
        with pytest.raises(netdsl_package.NetError):
            netdsl_package.report(**({"runs": [begun], "out": tmp_path / "no.html"} | wrong))
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("absent", "-o", "r.html"), "absent does not contain a run"),
        (("RUN", "-o", "r.png"), "r.png does not end in `.html`"),
        (("RUN", "RUN", "-o", "r.html"), "is given twice"),
        (("RUN", "-o", "RUN/recipe.net"), "recipe.net does not end in `.html`"),
        (("RUN", "-o", "absent/r.html"), "there is no folder"),
    ],
)
def test_bad_input(args: Sequence[str], message: str, run: Path, netdsl: Any) -> None:
    code, _, err = netdsl("report", *(a.replace("RUN", str(run)) for a in args))
    assert (code, message in err) == (2, True), err
    assert not Path("r.html").exists()


def test_settings_that_differ_are_compared(report: RunReport, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = report.run.text.replace("lr=0.01", "lr=0.02").replace("conv(4", "conv(5")
    (other / "recipe.net").write_text(text)
    options = ReportOptions(is_timed=False)
    (found,) = make_run_reports([other], open_backend("reference"), options)
    assert compare_runs([report, found, report]).settings == {
        "definition of the net": ("number 1", "number 2", "number 1"),
        "train.optimizer.lr": ("0.01", "0.02", "0.01"),
    }


def test_metrics_that_are_no_numbers_are_left_out(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    rows = [
        {"epoch": 1, "train_loss": 2.0, "val_loss": "<b>", "val_accuracy": "x", "seconds": [1]},
        {"epoch": 2, "train_loss": "x", "val_accuracy": 0.5, "seconds": 3.5, "lr": True},
        {"test_images": "<i>", "test_accuracy": 0.25},
    ]
    (other / "metrics.jsonl").write_text("\n".join(["torn {", *map(json.dumps, rows), "{"]))
    (found,) = read_runs([other])
    assert found.epochs == (
        {"epoch": 1, "train_loss": 2.0},
        {"epoch": 2, "val_accuracy": 0.5, "seconds": 3.5},
    )
    assert (found.best, found.test) == (found.epochs[0], {"test_accuracy": 0.25})
    assert found.seconds == 3.5


@settings(max_examples=40)
@given(st.data())
def test_the_worst_mistakes_are_those_with_the_largest_loss(data: st.DataObject) -> None:
    n, classes, count = (data.draw(st.integers(1, k)) for k in (30, 4, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    labels = rng.integers(0, classes, n).astype(np.int32)
    shares = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    predicted = shares.argmax(axis=1).astype(np.int32)
    samples = Samples(rng.integers(0, 256, (n, 3, 2, 1)).astype(np.uint8), labels)
    collector, names = MistakeCollector("abcd", count), "abcd"
    for part in np.array_split(np.arange(n), 3):
        collector.add(samples, Predictions(part, labels[part], predicted[part], shares[part]))
    wrong = [i for i in range(n) if labels[i] != predicted[i]]
    wrong.sort(key=lambda i: shares[i, labels[i]])
    found = collector.mistakes()
    assert [m.image for m in found] == [str(i) for i in wrong[:count]]
    for mistake, i in zip(found, wrong, strict=False):
        assert mistake.loss == pytest.approx(-np.log(shares[i, labels[i]]), rel=1e-5)
        assert (mistake.true, mistake.predicted) == ((names[labels[i]],), (names[predicted[i]],))
        assert mistake.picture is not None
        assert (mistake.picture == samples.images[i]).all()


def test_a_mistake_without_a_prediction_or_a_picture_and_of_several_labels() -> None:
    shares = np.array([[0.9, 0.2, 0.6], [np.nan, 0.5, 0.5]], np.float32)
    vectors = Samples(np.zeros((2, 4), np.float32), np.zeros(2, np.int32))
    collector = MistakeCollector("abc", 5)
    collector.add(vectors, Predictions(np.arange(2), np.array([2, 0]), np.array([0, -1]), shares))
    first, second = collector.mistakes()
    assert (first.image, first.predicted, first.loss) == ("1", (), float("inf"))
    assert (second.true, second.predicted, second.picture) == (("c",), ("a",), None)
    wide = Samples(np.zeros((1, 2, 4 * MAX_SIDE, 3), np.uint8), np.ones((1, 3), np.uint8))
    collector = MistakeCollector("abc", 5)
    labels, predicted = np.array([[True, True, False]]), np.array([[True, False, True]])
    collector.add(wide, Predictions(np.arange(1), labels, predicted, shares[:1]))
    (mistake,) = collector.mistakes()
    assert (mistake.true, mistake.predicted) == (("a", "b"), ("a", "c"))
    assert mistake.loss == pytest.approx(-np.log([0.9, 0.2, 0.4]).mean(), rel=1e-5)
    assert mistake.picture is not None
    assert mistake.picture.shape == (1, MAX_SIDE, 3)


def make_evaluation(classes: Sequence[str], has_matrix: bool = True) -> EvaluationReport:
    """Of two images per class, one is taken for the next class."""
    n = len(classes)
    labels = np.repeat(np.arange(n), 2)
    predicted = np.where(np.arange(2 * n) % 2, (labels + 1) % n, labels)
    confusion = np.zeros((n, n), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    counts = count_classes(labels, predicted, n)
    score = Score(0.5, 0.5, 0.9 if has_matrix else None, 2 * n, counts)
    return EvaluationReport(score, "test", tuple(classes), confusion if has_matrix else None)


@pytest.mark.parametrize("count", [2, MAX_CLASSES, MAX_CLASSES + 1, 300])
def test_a_matrix_of_many_classes_is_left_out(report: RunReport, count: int) -> None:
    evaluation = make_evaluation([f"class{i}" for i in range(count)])
    cells = make_cells(evaluation)
    assert (cells is None) == (count > MAX_CLASSES)
    for row in cells or []:
        shown = [cell.level for _, cell in zip(evaluation.classes, row[1], strict=True)]
        assert sorted(shown)[-2:] == [LEVELS // 2] * 2
    text = render_page([bare(replace(report, evaluation=evaluation))]).decode()
    assert ("Confusion matrix" in text) == (cells is not None)
    assert "Most confused pairs" in text


def test_several_labels_have_no_matrix(report: RunReport) -> None:
    evaluation = make_evaluation("abc", has_matrix=False)
    mistake = Mistake("val/ant.jpg", ("a", "c"), (), (0.1, 0.2), (), 2.3, None)
    text = render_page([bare(replace(report, evaluation=evaluation, mistakes=(mistake,)))]).decode()
    assert "Confusion matrix" not in text
    assert "val/ant.jpg" in text
    assert re.search(r">a, c<.*>predicted none<", text, re.DOTALL)
    assert "predicts all labels correctly for 50.0% of 6 test images" in text


@settings(max_examples=40)
@given(st.text(alphabet=st.sampled_from('net data{}#"\\\n 12.x<ä'), max_size=60))
def test_highlighting_changes_no_text(text: str) -> None:
    assert "".join(piece for _, piece in split_text(text)) == text


def test_kinds_of_text() -> None:
    pieces = [p for p in split_text('net a { # net\n conv(16, name="16 # x")\n}\n') if p[0]]
    assert pieces == [
        ("keyword", "net"),
        ("comment", "# net"),
        ("numeral", "16"),
        ("string", '"16 # x"'),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (9.2e-6, "9.2 µs"),
        (0.00725, "7.25 ms"),
        (3.456, "3.46 s"),
        (59.96, "1 min 0 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_run_without_an_evaluation_or_an_epoch(report: RunReport) -> None:
    failed = replace(report, evaluation=None, mistakes=())
    accuracy = report.run.test["test_accuracy"]
    assert headline(failed) == (
        f"The net small reached an accuracy of {accuracy:.1%} on the test images of digits."
    )
    begun = bare(failed)
    assert headline(begun) == "The net small has not finished an epoch on digits."
    assert "Curves" not in render_page([begun]).decode()


def test_shares_are_not_rounded_to_all_or_nothing() -> None:
    shares = (0, 1e-5, 0.5, 0.99999, 1)
    expected = ["0.0%", "under 0.1%", "50.0%", "over 99.9%", "100.0%"]
    assert [*map(format_percent, shares)] == expected


# ---- what it must not do -------------------------------------------------------------------------


def bare(report: RunReport) -> RunReport:
    """A report of a run that has not finished an epoch: curves take long to draw."""
    history = replace(report.run.history, epochs=(), test={})
    return replace(report, run=replace(report.run, history=history))


ADDRESSES = ("href", "xlink:href", "src", "action", "content", "data", "style")


class Skeleton(HTMLParser):
    """The elements of a page, with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


HOSTILE = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onfocus=alert(1) autofocus='",
            "</title></style></pre><svg onload=alert(1)>",
            "{{ 7 * 7 }}{% raw %}",
            "javascript:alert(1)//",
            "<!--",
            "]]>&lt;script&gt;",
            "\u202egpj.x\x1b[2J\x00\ud800",
        ]
    ),
    st.text(min_size=1, max_size=12),
)


@pytest.fixture(scope="module")
def skeleton(report: RunReport) -> Callable[[str, str, str], Skeleton]:
    """The page of two reports with such names of classes and layers, and of images and runs."""

    def render(name: str, other: str, place: str) -> Skeleton:
        history = replace(report.run.history, name=place)
        mistake = Mistake(place, (name,), (other,), (0.1,), (0.9,), 2.3, None)
        costs = replace(report.costs, layers=(replace(report.costs.layers[0], name=other),))
        whole = replace(
            bare(replace(report, run=replace(report.run, history=history))),
            evaluation=replace(make_evaluation((name, f"{other}2")), note=place),
            mistakes=(mistake, replace(mistake, picture=np.zeros((2, 2, 1), np.uint8))),
            costs=costs,
        )
        failed = replace(whole, evaluation=None, mistakes=(), problem=name)
        return Skeleton(render_page([whole, failed]).decode())

    return render


@pytest.fixture(scope="module")
def plain_tags(skeleton: Callable[[str, str, str], Skeleton]) -> list[Any]:
    return skeleton("name", "other", "place").tags


@settings(max_examples=12)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_name_is_obeyed(
    skeleton: Callable[[str, str, str], Skeleton],
    plain_tags: list[Any],
    name: str,
    other: str,
    place: str,
) -> None:
    """Whatever classes, images, layers, runs and errors are called, the elements are the same."""
    found = skeleton(name, other, place)
    assert found.tags == plain_tags
    text = "".join(found.text)
    assert all(escape_text(x) in text for x in (name, other, place))
    assert not [x for x in found.addresses if "javascript" in x]


def test_a_page_has_only_the_script_of_graphs_and_no_address(page: Path) -> None:
    text = page.read_text()
    found = Skeleton(text)
    names = [tag[0] for tag in found.tags if isinstance(tag, tuple)]
    assert not {*names} & {"iframe", "object", "embed", "form", "base", "i", "b"}
    assert "<i>data</i>" in "".join(found.text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert scripts == [read_fragment_script()]  # the nets are the same
    assert names.count("script") == 1 + text.count('<script type="application/json">')
    for tag in found.tags:
        assert isinstance(tag, str) or not any(name.startswith("on") for name in tag[1])
    assert not [x for x in found.addresses if "://" in x]


# ---- in a browser --------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; the tests are skipped, with a message, if it or Playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no Chromium; on Debian: apt install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page as a phone shows it. It may request nothing, and print no error."""
    with browser.new_context(viewport={"width": 400, "height": 800}) as context:
        opened = context.new_page()
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: problems.append(request.url))
        opened.goto(page.as_uri())
        yield opened
        assert {x for x in problems if not x.startswith("data:")} == {page.as_uri()}


STRUCTURE = """() => ({
  levels: [...document.querySelectorAll('h1,h2,h3,h4,h5')].map(h => Number(h.tagName[1])),
  tables: [...document.querySelectorAll('table')].filter(t => !t.caption?.textContent.trim()
    || !t.tHead.querySelector('th[scope=col]')
    || [...t.tBodies[0].rows].some(r => r.cells[0].getAttribute('scope') != 'row')).length,
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  references: [...document.querySelectorAll('[aria-labelledby]')]
    .map(e => e.getAttribute('aria-labelledby')),
  links: [...document.querySelectorAll('a')].map(a => a.getAttribute('href').slice(1)),
  pictures: [...document.images].map(i => [i.alt, i.naturalWidth]),
  drawings: [...document.querySelectorAll('svg')].filter(s => s.getAttribute('aria-hidden')
    != 'true' && !s.closest('.netdsl-graph'))
    .map(s => s.getAttribute('role') + ' ' + s.querySelector('title')?.textContent),
})"""


def test_roles(tab: Any) -> None:
    for role, name in (
        ("banner", None),
        ("main", None),
        ("navigation", "Contents"),
        ("region", "Comparison"),
        ("region", "Filters of the first layer"),
    ):
        assert tab.get_by_role(role, name=name).count() == 1
    assert tab.locator("html").get_attribute("lang") == "en"
    assert tab.title() == "Report on 3 runs"
    found = tab.evaluate(STRUCTURE)
    levels = found["levels"]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert found["tables"] == 0
    assert len({*found["ids"]}) == len(found["ids"])
    assert {*found["references"], *found["links"]} <= {*found["ids"]}
    assert len(found["pictures"]) == 8  # mistakes, and the filters of one net
    assert all(alt and width for alt, width in found["pictures"])
    assert found["drawings"]
    assert all(text.startswith("img ") and len(text) > 8 for text in found["drawings"])
    assert tab.get_by_role("table", name="predicted as another").first.is_visible()


REACHABLE = """() => [...document.querySelectorAll(
  'a[href], summary, button, [tabindex="0"]')]
  .filter(e => e.checkVisibility({contentVisibilityAuto: true}) && !e.closest('[display=none]'))"""


def test_the_keyboard_reaches_and_operates_everything(tab: Any) -> None:
    count = tab.evaluate(f"({REACHABLE})().length")
    reached = set()
    for _ in range(count):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate(f"({REACHABLE})().indexOf(document.activeElement)"))
    assert reached == {*range(count)}
    tab.reload()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Skip to the content"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
    drawn = tab.get_by_role("group", name="Layers of small").get_by_role("button")
    drawn.first.focus()
    before = drawn.first.get_attribute("aria-expanded")
    tab.keyboard.press("Enter")
    assert {before, drawn.first.get_attribute("aria-expanded")} == {"true", "false"}
    folded = tab.locator("summary")
    for i in range(folded.count()):
        folded.nth(i).focus()
        tab.keyboard.press("Enter")
    assert tab.locator("details:not([open])").count() == 0


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


CONTRASTS = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const pixel = (colours) => {
    for (const [colour, opacity] of colours) {
      context.globalAlpha = opacity; context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title, script, style')) continue;
    if (element.closest('.netdsl-graph svg')) continue;  // on boxes, which have their own test
    const behind = [];
    for (let e = element; e; e = e.parentElement)
      behind.unshift([getComputedStyle(e).backgroundColor, 1]);
    const style = getComputedStyle(element), isDrawn = element.closest('svg');
    const ink = isDrawn ? [style.fill, Number(style.fillOpacity)] : [style.color, 1];
    const [a, b] = [light(pixel(behind)), light(pixel([...behind, ink]))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.className + ' ' + walker.currentNode.data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(tab: Any, scheme: str) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks of text (1.4.3, level AA)."""
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 300
    assert not [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5]
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_everything_is_printed(tab: Any) -> None:
    tab.emulate_media(media="print")
    assert tab.get_by_text("learning rate").first.is_visible()
    assert not tab.get_by_role("navigation").is_visible()


INJECTION = """async () => {
  const blocked = [];
  document.addEventListener('securitypolicyviolation', e => blocked.push(e.effectiveDirective));
  const add = (name, values) =>
    document.body.append(Object.assign(document.createElement(name), values));
  add('script', {textContent: 'window.isObeyed = true'});
  add('style', {textContent: 'body { display: none }'});
  add('img', {src: 'http://127.0.0.1:9/x.png'});
  await fetch('http://127.0.0.1:9/').catch(() => {});
  for (let i = 0; i < 50 && blocked.length < 4; i++) await new Promise(r => setTimeout(r, 20));
  return [window.isObeyed === true, blocked.sort()];
}"""


def test_the_policy_blocks_what_should_not_be_there(browser: Any, page: Path) -> None:
    with browser.new_context() as context:
        opened = context.new_page()
        opened.goto(page.as_uri())
        is_obeyed, blocked = opened.evaluate(INJECTION)
    assert not is_obeyed
    assert blocked == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
