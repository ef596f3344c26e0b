"""Plots of runs: what is read of a run's files, what is made of it, and the pictures."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl import plot
from netdsl.errors import NetError
from netdsl.insight.event_log import EventLog
from netdsl.insight.plots.axes import spread
from netdsl.insight.plots.curves import plot_curves
from netdsl.insight.plots.figure import FORMATS, INK, parse_size, save_figure, svg_fragment
from netdsl.insight.plots.history import RunHistory, read_histories, read_history
from netdsl.insight.plots.live_plot import MAX_SHARE, LivePlot
from netdsl.insight.plots.series import PlotOptions, make_chart
from netdsl.insight.recorders import follow_run

COLUMNS = ("val_loss", "val_accuracy", 'val_recall("ants")', "lr", "seconds")
NUMBERS = st.one_of(st.none(), st.floats(1e-9, 1e9))


@st.composite
def runs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The lines of a run: epochs, watched steps before them, and perhaps a test at the end."""
    steps = draw(st.integers(1, 50))
    columns = draw(st.lists(st.sampled_from(COLUMNS), unique=True))
    lines: list[dict[str, Any]] = []
    for epoch in range(1, draw(st.integers(0, 5)) + 1):
        for at in range((epoch - 1) * steps, epoch * steps, 20):
            norms = {f"{x}.weight": {"norm": draw(NUMBERS)} for x in ("a", "b.c")}
            lines.append({"watched_at": at, "gradients": norms})
        measured = {name: draw(NUMBERS) for name in columns}
        losses = {"train_loss": draw(st.floats(1e-3, 1e3))}
        lines.append({"epoch": epoch, "step": epoch * steps, **losses, **measured})
    if lines and draw(st.booleans()):
        lines.append({"best_epoch": 1, "test_loss": 0.5, "test_images": 3})
    return lines


def write_run(folder: Path, text: bytes, recipe: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(text)
    (folder / "recipe.net").write_text(recipe)
    return folder


def encode(lines: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(x)}\n" for x in lines).encode()


def by_kind(lines: list[dict[str, Any]]) -> tuple[list[Any], ...]:
    """The epochs, the watched steps and the last test among lines."""
    test = [x for x in lines if "test_images" in x]
    epochs = [{k: v for k, v in x.items() if v is not None} for x in lines if "epoch" in x]
    watches = [x for x in lines if "watched_at" in x]
    return epochs, watches, test[-1:] or [{}]


@settings(max_examples=60)
@given(runs(), st.data())
def test_a_history_has_all_whole_lines(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    """A file may be cut anywhere in its last line, by a kill, or be garbage there."""
    whole, last = encode(lines), lines[-1:]
    torn = len(whole) - data.draw(st.integers(0, len(encode(last))))
    kept = lines if torn == len(whole) else lines[:-1]
    with TemporaryDirectory() as folder:
        history = read_history(write_run(Path(folder) / "a", whole[:torn]))
        epochs, watches, test = by_kind(kept)
        found = ([*history.epochs], [*history.watches], [history.test])
        assert found == (epochs, watches, test)
        assert history.facts is None  # an empty recipe.net
        for name in (*COLUMNS, "train_loss"):
            wanted = [math.nan if x.get(name) is None else x[name] for x in epochs]
            np.testing.assert_array_equal(history.column(name), wanted)
            assert (name in history.columns) == any(x.get(name) is not None for x in epochs)
        for by in ("epoch", "step"):
            assert history.position(by).tolist() == [x[by] for x in epochs]
        table = history.watch_table("gradients")
        assert table.steps.tolist() == [x["watched_at"] for x in watches]
        for i, path in enumerate(table.layers):
            norms = [x["gradients"][f"{path}.weight"]["norm"] for x in watches]
            np.testing.assert_allclose(table.values[i], np.array(norms, np.float64), rtol=1e-12)


COUNTS = st.integers(0, 9)
WRITTEN = st.one_of(st.sampled_from((None, True, "7", [7], {}, 10**400, -1, 1e308)), st.floats())


@settings(max_examples=30)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("epoch", "step", "watched_at"), COUNTS)
            | dict.fromkeys(("train_loss", "val_loss", "val_accuracy", "test_images"), WRITTEN)
            | {"gradients": st.one_of(WRITTEN, st.dictionaries(st.just("a"), WRITTEN))},
        ),
        max_size=4,
    )
)
def test_a_history_holds_numbers_whatever_program_wrote_the_metrics(
    lines: list[dict[str, Any]],
) -> None:
    with TemporaryDirectory() as folder:
        history = read_history(write_run(Path(folder), encode(lines)))
    for row in (*history.epochs, history.test):
        assert {*map(type, row.values())} <= {int, float}
        assert all(float(x) == x or math.isnan(x) for x in row.values())
    assert history.best_epoch is None or history.best_epoch in history.column("epoch")
    if history.columns:
        make_chart([history], PlotOptions(history.columns, history.watched))


@settings(max_examples=20)
@given(runs(), st.data())
def test_the_later_of_two_lines_of_an_epoch_counts(lines: list[Any], data: st.DataObject) -> None:
    """As when a resumed run repeats epochs."""
    again = data.draw(st.integers(0, len(lines)))
    repeated = [{**x, "train_loss": 7.0} if "epoch" in x else x for x in lines[again:]]
    with TemporaryDirectory() as folder:
        history = read_history(write_run(Path(folder), encode([*lines, *repeated])))
    epochs, watches, _ = by_kind([*lines[:again], *repeated])
    assert ([*history.epochs], [*history.watches]) == (epochs, watches)


@settings(max_examples=30)
@given(runs(), st.booleans())
def test_a_chart_is_json_and_positive_where_it_is_logarithmic(lines: list[Any], each: bool) -> None:
    with TemporaryDirectory() as folder:
        history = read_history(write_run(Path(folder), encode(lines)))
    if not history.columns:
        with pytest.raises(NetError, match="no epoch is finished"):
            make_chart([history], PlotOptions())
        return
    chart = make_chart([history], PlotOptions(history.columns, history.watched, each=each))
    assert {x.metric for panel in chart.curves for x in panel.series} == {*history.columns}
    for panel in chart.curves:
        values = np.concatenate([x.y for x in panel.series])
        known = values[np.isfinite(values)]
        if panel.is_log:
            assert known.min() > 0
            assert known.max() >= 10 * known.min()
    assert json.loads(json.dumps(chart.as_json()))["panels"]


def make_history(name: str, rows: list[dict[str, Any]], **more: Any) -> RunHistory:
    values = {"watches": (), "test": {}, "facts": None, **more}
    return RunHistory(name, Path(name), tuple(rows), **values)


RECIPE = """# netdsl 0.1.0, format 2, train {name}
net n {{ input(8x8x1) -> fc(10) }}
data {{ source = digits }}
train {{ net = n, seed = {seed}, epochs = {epochs}, best = min(val_loss) }}
"""


def write_seed(folder: Path, loss: float, seed: int, epochs: int = 3, name: str = "a") -> Path:
    """A run whose recipe has this seed, and which has measured this loss."""
    row = {"epoch": 1, "step": 10, "train_loss": loss, "val_loss": loss, "val_accuracy": 0.5}
    recipe = RECIPE.format(name=name, seed=seed, epochs=epochs)
    return write_run(folder / f"lr=0.1,seed={seed}", encode([row]), recipe)


def test_runs_of_one_recipe_share_a_line(tmp_path: Path) -> None:
    """If nothing but their seeds differs; else each kind has one."""
    places = [write_seed(tmp_path / "a", loss, seed) for seed, loss in ((1, 1.0), (2, 2.0))]
    places += [write_seed(tmp_path / "b", 3.0, 1, epochs=9), write_seed(tmp_path / "c", 4.0, 1)]
    histories = read_histories(places)
    facts = [h.facts for h in histories if h.facts is not None]
    assert [(x.seed, x.recipe_name, x.recipe.epochs) for x in facts] == [
        *((1, "a", 3), (2, "a", 3), (1, "a", 9), (1, "a", 3))
    ]
    loss, accuracy = make_chart(histories, PlotOptions()).curves
    assert [line.runs for line in loss.series if line.part == "val"] == [
        ("a/lr=0.1,seed=1", "a/lr=0.1,seed=2", "c/lr=0.1,seed=1"),
        ("b/lr=0.1,seed=1",),
    ]
    assert accuracy.is_share
    each = make_chart(histories, PlotOptions(("val_loss",), each=True)).curves[0].series
    assert [line.y.tolist() for line in each] == [[1.0], [2.0], [3.0], [4.0]]
    sweep = make_chart(read_histories([tmp_path / "a"]), PlotOptions())
    assert (sweep.labels, sweep.title) == (("lr=0.1",), "loss, accuracy of lr=0.1")


def test_a_sweep_over_seeds_alone_is_named_by_its_folder(tmp_path: Path) -> None:
    row = {"epoch": 1, "step": 10, "train_loss": 1.0}
    for seed in (1, 2):
        recipe = RECIPE.format(name="section", seed=seed, epochs=3)
        write_run(tmp_path / "sweep" / f"seed={seed}", encode([row]), recipe)
    assert make_chart(read_histories([tmp_path / "sweep"]), PlotOptions()).labels == ("sweep",)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=4), min_size=2, max_size=4))
def test_the_line_of_several_seeds_is_their_mean(losses: list[list[float]]) -> None:
    facts: Any = SimpleNamespace(kind="a", recipe_name=None, recipe=SimpleNamespace(best=None))
    histories = [
        make_history(
            f"seed={seed}",
            [{"epoch": i, "step": 10 * i, "train_loss": x} for i, x in enumerate(row, 1)],
            facts=facts,
        )
        for seed, row in enumerate(losses)
    ]
    (loss,) = make_chart(histories, PlotOptions(("train_loss",))).curves[0].series
    assert loss.x.tolist() == [*range(1, max(map(len, losses)) + 1)]
    assert loss.deviation is not None
    for i in range(len(loss.x)):
        known = [row[i] for row in losses if len(row) > i]
        deviation = np.std(known, ddof=1) if len(known) > 1 else 0.0
        assert loss.y[i] == pytest.approx(np.mean(known))
        assert loss.deviation[i] == pytest.approx(deviation, abs=1e-12)


def test_a_sweep_stands_for_its_runs_in_the_order_of_numbers(tmp_path: Path) -> None:
    names = ("lr=0.003,seed=9", "lr=0.003,seed=10", "lr=0.01,seed=1")
    for name in names:
        write_run(tmp_path / name, encode([{"epoch": 1, "step": 1, "train_loss": 1.0}]))
    assert tuple(h.name for h in read_histories([tmp_path])) == names
    with pytest.raises(NetError, match="given twice"):
        read_histories([tmp_path, tmp_path / names[0]])


def test_a_finished_sweep_has_the_order_of_its_table(tmp_path: Path) -> None:
    names = ("b,seed=1", "a,seed=1", "c,seed=1")
    for name in names:
        write_run(tmp_path / name, encode([{"epoch": 1, "step": 1, "train_loss": 1.0}]))
    for runs, wanted in (([{"name": x} for x in names[:2]], names), ("damaged", sorted(names))):
        (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
        assert [h.name for h in read_histories([tmp_path])] == [*wanted]


def test_names_are_short_and_different(tmp_path: Path) -> None:
    line = encode([{"epoch": 1, "step": 1, "train_loss": 1.0}])
    runs = [write_run(tmp_path / x, line) for x in ("a/x", "b/x", "b/y")]
    assert [h.name for h in read_histories(runs)] == ["a/x", "b/x", "b/y"]
    assert [h.name for h in read_histories(runs[1:])] == ["x", "y"]


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4))
def test_stages_follow_each_other(counts: list[list[int]]) -> None:
    """Positions go on where the stage before ended, in epochs, steps and seconds."""
    parts = [
        make_history(
            f"s{i}",
            [
                {"epoch": k, "step": sum(steps[:k]), "seconds": 0.5, "train_loss": 1.0}
                for k in range(1, len(steps) + 1)
            ],
        )
        for i, steps in enumerate(counts)
    ]
    whole = make_history("run", [*parts[-1].epochs], stages=tuple(parts[:-1]))
    all_steps = [n for steps in counts for n in steps]
    assert whole.position("epoch").tolist() == [*range(1, len(all_steps) + 1)]
    assert whole.position("step").tolist() == np.cumsum(all_steps).tolist()
    assert whole.position("seconds").tolist() == [0.5 * (i + 1) for i in range(len(all_steps))]
    starts = [start for _, start in whole.stage_starts("epoch")]
    ends = np.cumsum([0, *map(len, counts)])[:-1].tolist()
    assert starts == (ends if len(counts) > 1 else [])


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.3))
def test_labels_are_moved_apart_and_no_further(places: list[float], gap: float) -> None:
    moved = spread(places, gap)
    order = sorted(range(len(places)), key=lambda i: places[i])
    near = [(moved[a], moved[b]) for a, b in pairwise(order)]
    assert all(b - a >= gap - 1e-9 for a, b in near)
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)
    wanted = sorted(places)
    if all(b - a > gap for a, b in pairwise(wanted)):
        assert moved == pytest.approx(places)


HISTORY = make_history(
    'we"#b<&$x',
    [
        {
            "epoch": i,
            "step": i,
            "train_loss": 2.0 / i,
            "val_loss": math.nan if i == 2 else 1.0 / i**2,
            "train_accuracy": i / 6,
            "lr": 0.1**i,
        }
        for i in range(1, 6)
    ],
    watches=tuple(
        {"watched_at": i, "gradients": {f"l{k}.weight": {"norm": 10.0**-k * i} for k in range(9)}}
        for i in range(4)
    ),
)
OTHER = make_history("b", [*HISTORY.epochs[:3]])


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_figure_is_the_same_file(suffix: str, tmp_path: Path) -> None:
    is_loaded = "matplotlib.pyplot" in sys.modules  # igraph imports it
    for name in ("a", "b"):
        figure = plot_curves([HISTORY, OTHER], PlotOptions(("loss",)), (300, 200))
        save_figure(figure, tmp_path / f"{name}{suffix}")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert ("matplotlib.pyplot" in sys.modules) == is_loaded


def test_a_fragment_fits_into_a_page() -> None:
    """Texts stay texts, in the page's colour; ids are unique; a heat map has no link outside."""
    options = (PlotOptions(("loss", "accuracy")), PlotOptions(watch=("gradients",)))
    pieces = [svg_fragment(plot_curves([HISTORY], x, (700, 300))) for x in options]
    page = ElementTree.fromstring(f"<div>{''.join(pieces)}</div>")
    ids = [x.get("id") for x in page.iter() if x.get("id") is not None]
    assert len(ids) == len({*ids})
    for svg in page:
        (title,) = (x for x in svg if x.tag.endswith("title"))
        assert (svg.get("role"), svg.get("aria-labelledby")) == ("img", title.get("id"))
        assert 'we"#b<&$x' in (title.text or "")
        links = [v for x in svg.iter() for k, v in x.attrib.items() if k.endswith("href")]
        assert all(v[1:] in ids if v[0] == "#" else v.startswith("data:image") for v in links)
    texts = [x.text for x in page.iter() if x.tag.endswith("text")]
    assert {"loss", "validation", "80%", "l0"} <= {*texts}
    assert INK not in "".join(pieces)
    assert all(x in "".join(pieces) for x in ("currentColor", "url(#n"))
    assert {*re.findall(r"url\(#(.*?)\)", "".join(pieces))} <= {*ids}


@pytest.mark.parametrize("text", ["", "5", "100x", "0x500", "20001x500", "300x300x3", "٣٠٠x300"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(NetError, match=r"size|not possible"):
        parse_size(text)
    assert parse_size("1200x800") == (1200, 800)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0.01, 5)), min_size=1, max_size=40))
def test_drawing_takes_few_per_cent_of_a_run(epochs: list[tuple[float, float]]) -> None:
    """Epochs of these seconds, after each of which a picture would take so many."""
    clock, drawn = [0.0], [0.0]
    cost = 0.01

    def draw(run: Path, out: Path) -> None:
        clock[0] += cost
        drawn[0] += cost

    live = LivePlot(Path("run"), Path("x.png"), draw, lambda: clock[0])
    for seconds, next_cost in epochs:
        cost = min(next_cost, 1.5 * cost + 0.01)  # the cost of a picture grows slowly
        clock[0] += seconds
        live.update()
        assert drawn[0] <= 1.6 * MAX_SHARE * clock[0] + 0.02
    before = drawn[0]
    live.close()
    assert drawn[0] > before


def test_what_follows_a_run_cannot_end_it() -> None:
    class Broken:
        def update(self) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise ValueError("closed")

    class Counter:
        updates = closed = 0

        def update(self) -> None:
            self.updates += 1

        def close(self) -> None:
            self.closed += 1

    said: list[str] = []
    counter = Counter()

    def run() -> None:
        with follow_run({"it": Broken(), "x": counter}, said.append) as update:
            update()
            update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert said == ["warning: it failed, but the run continues: OSError: no space left"]
    assert (counter.updates, counter.closed) == (2, 1)


NET = """net n { input(8x8x1) -> fc(16) -> relu -> fc(10) }
data { source = arrays("x.npz"), batch = 32, validation = 30 }
train { optimizer = sgd(lr=0.1), epochs = 1 }
train more { after = less, epochs = 3, best = max(val_f1) }
train less { epochs = 2 }
"""


ON_REFERENCE = ("--device", "reference")  # which compiles nothing


def test_a_run_is_plotted_while_it_trains_and_afterwards(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "x.net").write_text(NET)
    noise = np.random.default_rng(1).integers(0, 256, (128, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "x.npz", images=noise, labels=np.arange(128) % 10)
    watch = ("--watch", "gradients", "--watch-every", "3")
    follow = ("--plot", "run/live.svg", "--tensorboard")
    assert netdsl("train", "x.net:more", "-o", "run", *watch, *follow, *ON_REFERENCE)[0] == 0
    live = (tmp_path / "run" / "live.svg").read_text()
    assert "F1" in live  # by which the best epoch was chosen
    assert "less" in live
    assert {*read_events(tmp_path / "run" / "tensorboard" / "less")} >= {"loss/val", "run/lr"}
    code, out, _ = netdsl("plot", "run", "--metric", "loss", "--metric", "val_f1", "--json")
    found = json.loads(out)
    assert (code, found["picture"]) == (0, None)
    rows = [
        x
        for place in ("run/less", "run")
        for x in map(json.loads, (tmp_path / place / "metrics.jsonl").read_text().splitlines())
    ]
    epochs = [x for x in rows if "epoch" in x]
    assert [x["name"] for x in found["stages"]] == ["less", "more"]
    lines = {x["metric"]: x for panel in found["panels"] for x in panel["series"]}
    assert {*lines} == {"train_loss", "val_loss", "val_f1"}
    for name, line in lines.items():
        assert line["y"] == [x[name] for x in epochs]
        assert line["x"] == [1, 2, 3, 4, 5]
    best = max(range(2, 5), key=lambda i: epochs[i]["val_f1"])
    assert lines["val_f1"]["best"]["value"] == epochs[best]["val_f1"]
    norms = ("--watch", "gradients", "--by", "step", "-o", "norms.png", "--size", "300x200")
    assert netdsl("plot", "run", *norms)[:2] == (0, "norms.png: norm of gradients of run\n")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


@settings(max_examples=20)
@given(runs(), st.data())
def test_event_files_have_what_the_metrics_file_has(lines: list[Any], data: st.DataObject) -> None:
    """Once, whenever they are updated, and if a resumed run repeats lines that a kill had cut."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lines)), min_size=2, max_size=4)))
    with TemporaryDirectory() as place:
        folder = Path(place) / "events"
        run = write_run(Path(place) / "run", b"", "net n {}")
        log = EventLog(run, folder)
        for cut in cuts:
            write_run(run, encode(lines[:cut]) + b'{"epoch', "net n {}")
            log.update()
        log.close()
        write_run(run, encode(lines[: cuts[0]]), "net n {}")
        resumed = EventLog(run, folder)
        resumed.update()
        write_run(run, encode(lines), "net n {}")
        resumed.close()
        found = read_events(folder)
    assert found.pop("recipe/text_summary") == {0: "    net n {}\n"}
    wanted: dict[str, dict[int, float]] = {}
    last = 0
    for line in lines:
        step = line.get("watched_at", line.get("step", last))
        last = max(last, step)
        for column, value in line.items():
            if column == "gradients":
                for path, moments in value.items():
                    wanted.setdefault(f"gradients_norm/{path}", {})[step] = moments["norm"]
            elif column in ("lr", "seconds"):
                wanted.setdefault(f"run/{column}", {})[step] = value
            elif column not in ("epoch", "step", "watched_at", "best_epoch", "test_images"):
                part, _, metric = column.partition("_")
                wanted.setdefault(f"{metric}/{part}", {})[step] = value
    known = {k: {s: x for s, x in v.items() if x is not None} for k, v in wanted.items()}
    assert found == {
        k: {s: pytest.approx(x, rel=1e-6) for s, x in v.items()} for k, v in known.items() if v
    }


def read_events(folder: Path) -> dict[str, dict[int, Any]]:
    """The values of event files by tag and step, as TensorBoard reads them: the start of a session
    takes back what is there from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])  # after a checksum
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                known = {
                    k: {s: x for s, x in v.items() if s < event.step} for k, v in found.items()
                }
                found = {k: v for k, v in known.items() if v}
            for value in event.summary.value:
                of_tag = found.setdefault(value.tag, {})
                assert event.step not in of_tag
                text = [x.decode() for x in value.tensor.string_val]
                of_tag[event.step] = text[0] if text else value.simple_value
    return found


def test_plots_from_python_are_those_of_the_command(netdsl: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", encode(RUN))
    assert netdsl("plot", "run", "-o", "a.svg", "--size", "300x200")[0] == 0
    figure = plot(run, out=tmp_path / "b.svg", size=(300, 200))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert figure.get_label() == "loss of run"
    for wrong in ({"by": "hour"}, {"watch": "gradients"}, {"metrics": ["f3"]}, {"out": run / "x"}):
        with pytest.raises(NetError):
            plot(run, **wrong)
    with pytest.raises(NetError, match="no run to plot"):
        plot()


RUN = [{"epoch": 1, "step": 1, "train_loss": 1.0, "val_f1": -1.0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "the picture has no name"),
        (("run", "-o", "x.gif"), "does not end in .png, .svg or .pdf"),
        (("run", "-o", "none/x.png"), "there is no folder"),
        (("run", "--json", "--metric", "val_f2"), "did you mean `val_f1`?"),
        (("run", "--json", "--metric", "test_f1"), "is measured once, after training"),
        (("run", "--json", "--metric", "f1", "--log"), "no positive value"),
        (("run", "--json", "--watch", "gradients"), "has recorded the norms"),
        (("run", "--json", "--watch", "gradient"), "did you mean `gradients`?"),
        (("run", "--json", "--by", "epochs"), "did you mean `epoch`?"),
        (("run", "--json", "--size", "12"), "not a size"),
        (("empty", "--json"), "no epoch is finished yet"),
        (("none", "--json"), "there is no such directory"),
        (("run", "run/metrics.jsonl", "--json"), "given twice"),
    ],
)
def test_what_cannot_be_plotted(
    arguments: tuple[str, ...], message: str, netdsl: Any, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", encode([*RUN, {"test_f1": 0.5, "test_images": 3}]))
    write_run(tmp_path / "empty", b"")
    code, out, err = netdsl("plot", *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("matplotlib.figure", "plot", ("plot", "run", "-o", "x.png")),
        ("matplotlib.figure", "plot", ("train", "x.net", "--plot", "x.png")),
        ("tensorboardX", "tensorboard", ("train", "x.net", "--tensorboard")),
    ],
)
def test_a_missing_package_is_named(
    module: str,
    extra: str,
    arguments: tuple[str, ...],
    netdsl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "run", encode(RUN))
    (tmp_path / "x.net").write_text(NET)
    for name in [x for x in sys.modules if x.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = netdsl(*arguments)
    assert code == 2
    assert f"pip install 'netdsl[{extra}]'" in err
