"""What lies in the directory of a run: lost, damaged, edited, exchanged or taken, it is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.job import prepare_job
from netdsl.training.recipe.expectations import judge_expectations
from netdsl.training.run.overfit import overfit
from netdsl.training.run.stages import run_stages
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.watch import parse_watch
from netdsl.training.store import checkpoint
from netdsl.training.store.lock import lock_directories
from netdsl.training.store.metrics_log import MetricsLog
from netdsl.training.store.resume import load_continuation
from tests.processes import NETDSL, NO_OUTPUT, run_process, start_process, wait_for
from tests.test_resume import kept

NET = """
net small { input(8x8x1); conv(2, 3x3, stride=2) -> relu -> fc(10) }
data { source = digits, batch = 256 }
data other { source = digits, batch = 256, validation = 0.3 }
train { optimizer = adam(lr=0.01), schedule = cosine, epochs = 2 }
"""
REFERENCE = open_backend("reference")
nothing: Any = lambda *given: None


def run(out: Path, text: str = NET, **options: Any) -> None:
    Trainer(build_program(parse(text)), None, REFERENCE).run(out, nothing, nothing, **options)


def go_on(out: Path, *settings: str, **options: Any) -> None:
    found = load_continuation(out, settings)
    trainer = Trainer(found.program, None, REFERENCE, saved=found.saved)
    trainer.run(out, nothing, nothing, **options)


def stopping(at: int) -> Any:
    """Asks that a run stop at the place of this number, counted from 0."""
    count = iter(range(at + 1000))
    return lambda: next(count) >= at


def stopped(out: Path, at: int, text: str = NET, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, text, should_stop=stopping(at), **options)


@pytest.mark.parametrize("at", range(14))
def test_stopped_at_any_place_and_resumed(tmp_path: Path, at: int) -> None:
    """In training, in validation, in the test: every rate that is written down is the same."""
    run(tmp_path / "whole")
    stopped(tmp_path / "out", at)
    go_on(tmp_path / "out")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_a_run_is_not_begun_anew_where_its_last_checkpoint_is_lost(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "last.safetensors").unlink()
    before = kept(tmp_path)
    with pytest.raises(NetError, match=r"last\.safetensors is missing.*best\.safetensors, metrics"):
        go_on(tmp_path)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(NetError, match=r"last\.safetensors is missing.*: metrics\.jsonl would"):
        go_on(tmp_path)
    assert kept(tmp_path)["metrics.jsonl"] == before["metrics.jsonl"]


def test_other_data_are_not_learnt_from_half_way(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(1), tmp_path / "x.npz"
    labels = rng.integers(0, 10, 600)
    labels[0] = 9
    np.savez(file, images=rng.integers(0, 256, (600, 8, 8), dtype=np.uint8), labels=labels)
    text = NET.replace("source = digits", f'source = arrays("{file}")')
    stopped(tmp_path / "out", 4, text)
    np.savez(file, images=rng.integers(0, 256, (600, 8, 8), dtype=np.uint8), labels=labels)
    with pytest.raises(NetError, match="the data set is not the one on which the run") as e:
        go_on(tmp_path / "out")
    assert "then: 600 images of 8x8x1, 10 classes, checksum " in e.value.render()


@pytest.mark.parametrize(
    ("setting", "key"),
    [("train.data=other", "train.data"), ('train.init=weights("x")', "train.init")],
)
def test_what_cannot_change_half_way(tmp_path: Path, setting: str, key: str) -> None:
    stopped(tmp_path, 4)
    with pytest.raises(NetError, match=f"`{key}` cannot be changed in the middle of a run"):
        go_on(tmp_path, setting)


def test_the_good_lines_of_damaged_metrics_are_kept(tmp_path: Path) -> None:
    looking = {"watch": parse_watch("gradients", 1)}
    run(tmp_path / "whole", **looking)
    out, told = tmp_path / "out", []
    stopped(out, 8, **looking)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    epoch = next(i for i, x in enumerate(lines) if "epoch" in json.loads(x))
    damaged = [*lines]
    damaged[1], damaged[epoch] = "[" * 200_000, '{"epoch": "one"}'
    damaged[2] = damaged[2][:-1] + ', "odd": NaN}'
    text = "\n".join(damaged)
    (out / "metrics.jsonl").write_text(text)
    go_on(out, log=told.append, **looking)
    assert (out / "metrics.jsonl.damaged").read_text() == text
    assert "metrics.jsonl.damaged" in told[0]
    found = kept(out)["metrics.jsonl"]
    assert found.pop(1).pop("odd") is None
    expected = kept(tmp_path / "whole")["metrics.jsonl"]
    assert len(expected) == len(found) + 2
    assert [x for x in expected if x in found] == [x for x in found if "odd" not in x]
    assert "NaN" not in (out / "metrics.jsonl").read_text()


def test_an_edited_recipe_is_set_aside(tmp_path: Path) -> None:
    stopped(tmp_path, 4)
    path, told = tmp_path / "recipe.net", []
    text = path.read_text()
    path.write_text(text.replace("epochs = 2", "epochs = 3"))
    go_on(tmp_path, log=told.append)
    assert path.read_text() == text
    assert "epochs = 3" in (tmp_path / "recipe.net.edited").read_text()
    assert "--set" in told[0]
    go_on(tmp_path, "train.epochs=3", log=told.append)
    assert len(told) == 1


def alone(*args: Any) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own."""
    return run_process(*NETDSL, "train", *map(str, args), "--device", "reference", text=True)


def test_a_directory_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    file, out = tmp_path / "small.net", tmp_path / "out"
    file.write_text(NET)
    with lock_directories(out):
        found = alone(file, "--out", out)
        assert found.returncode == 2
        assert f"error: another process is training in {out}\nhelp: " in found.stderr
    with lock_directories(out):
        assert not list(out.iterdir())


def test_no_stage_is_gone_on_with_beside_its_job(tmp_path: Path) -> None:
    """Neither the one that is being run nor one that is over."""
    file, out = tmp_path / "staged.net", tmp_path / "out"
    stages = "train middle { after = early }\ntrain early { }"
    text = NET.replace("train {", "train last { after = middle }\ntrain {") + stages
    file.write_text(text.replace("epochs = 2", "epochs = 2000"))
    args = ("train", f"{file}:last", "--out", str(out), "--device", "reference")
    with start_process(*NETDSL, *args, "--set", "train.early.epochs=1", **NO_OUTPUT) as job:
        wait_for(out / "middle" / "last.safetensors", job)
        for place in (out / "early", out / "middle", out):
            found = alone("--resume", place, "--set", "train.epochs=5")
            assert found.returncode == 2, found.stderr
            assert found.stderr.startswith(f"error: another process is training in {place}\nhelp: ")
        assert alone("--resume", out / "early", "--dry-run").returncode == 0
    # it was killed: the lock of a dead process does not hold
    assert alone("--resume", out / "early", "--set", "train.epochs=2").returncode == 0
    lines = (out / "early" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x).get("epoch") for x in lines] == [1, 2, None]


TWO_STAGES = build_program(parse(NET + "train late { after = early }\ntrain early { epochs = 1 }"))


def stopped_in_a_test(out: Path) -> None:
    """Stops a job of two stages while the first one's weights are tested."""
    go = lambda trainer, out: trainer.run(out, nothing, nothing, stopping(7))
    with pytest.raises(KeyboardInterrupt):
        run_stages(TWO_STAGES, "late", REFERENCE, None, out, go)
    assert [x.get("epoch") for x in kept(out)["early/metrics.jsonl"]] == [1]
    assert not list(out.glob("*.safetensors")), "the second one has not begun"


def test_a_job_does_not_begin_beside_one_in_a_stage_of_its_own(tmp_path: Path) -> None:
    stopped_in_a_test(tmp_path)
    before = kept(tmp_path)
    with lock_directories(tmp_path / "early"):
        found = alone("--resume", tmp_path)
        assert found.returncode == 2
        assert f"error: another process is training in {tmp_path / 'early'}\nhelp: " in found.stderr
    assert kept(tmp_path) == before


def test_a_directory_may_be_held_once_more_by_its_process(tmp_path: Path) -> None:
    link = tmp_path / "link"
    (tmp_path / "a").mkdir()
    link.symlink_to(tmp_path / "a")
    with lock_directories(tmp_path / "a", tmp_path / "b"), lock_directories(link):
        pass
    with pytest.raises(NetError, match="cannot write"), lock_directories(Path("/dev/null")):
        pass


def test_to_look_at_how_a_run_goes_on_changes_nothing(tmp_path: Path) -> None:
    stopped(tmp_path, 4)
    (tmp_path / ".netdsl-1").write_bytes(b"half")
    load_continuation(tmp_path)
    assert (tmp_path / ".netdsl-1").exists()
    go_on(tmp_path)
    assert not (tmp_path / ".netdsl-1").exists()


def _train(trainer: Trainer, out: Path) -> Any:
    return trainer.run(out, nothing, nothing)


def test_the_test_of_a_stage_is_made_up_for(tmp_path: Path) -> None:
    run_stages(TWO_STAGES, "late", REFERENCE, None, tmp_path / "whole", _train)
    stopped_in_a_test(tmp_path / "out")
    found = load_continuation(tmp_path / "out")
    run_stages(found.program, None, REFERENCE, None, tmp_path / "out", _train, found.saved)
    a, b = (kept(tmp_path / d)["early/metrics.jsonl"] for d in ("whole", "out"))
    assert a == b
    assert "test_loss" in b[-1]


def test_overfitting_begins_as_the_recipe_says(tmp_path: Path) -> None:
    run(tmp_path)
    begun = NET.replace("epochs = 2", f'epochs = 2, init = weights("{tmp_path}")')
    jobs = (prepare_job(build_program(parse(text)), None) for text in (NET, begun))
    anew, from_there = (overfit(job, REFERENCE, 1) for job in jobs)
    assert from_there.first < anew.first - 0.05
    staged = build_program(parse(NET + "train late { after = early }\ntrain early { epochs = 1 }"))
    with pytest.raises(NetError, match="`early` must be trained first"):
        overfit(prepare_job(staged, "late"), REFERENCE, 1)


def test_one_class_is_nothing_to_learn_by_heart(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, images=np.zeros((600, 8, 8), np.uint8), labels=np.zeros(600, np.int64))
    text = NET.replace("source = digits", f'source = arrays("{file}")').replace("fc(10)", "fc(1)")
    with pytest.raises(NetError, match="all 600 training images are of one class, `0`"):
        prepare_job(build_program(parse(text)), None)


STAGED = NET + "train late { after = early }\ntrain early { epochs = 2 }"


def test_a_change_in_a_stage_is_written_down(tmp_path: Path) -> None:
    go = lambda at: lambda trainer, out: trainer.run(out, nothing, nothing, stopping(at))
    with pytest.raises(KeyboardInterrupt):
        run_stages(build_program(parse(STAGED)), "late", REFERENCE, None, tmp_path, go(3))
    settings = ["train.early.epochs=1", "train.epochs=3"]
    found = load_continuation(tmp_path, settings)
    run_stages(found.program, None, REFERENCE, None, tmp_path, go(10**6), found.saved)
    assert checkpoint.load(tmp_path / "early" / "last.safetensors").progress["epoch"] == 1
    assert checkpoint.load(tmp_path / "last.safetensors").progress["epoch"] == 3
    text = (tmp_path / "early" / "recipe.net").read_text()
    assert "# resumed after 3 updates: train.epochs = 1 (was 2)" in text


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_set_by_name_holds(order: int) -> None:
    from netdsl.language.override import override
    from netdsl.training.recipe.recipe import resolve_recipe

    settings = ["train.early.epochs=7", "train.epochs=3"][::order]
    p = build_program(override(parse(STAGED), settings))
    assert [resolve_recipe(p, name).epochs for name in (None, "late", "early")] == [3, 3, 7]


def test_a_directory_that_holds_runs_takes_no_new_one(tmp_path: Path) -> None:
    from netdsl.training.store.run_directory import create_run_directory

    run(tmp_path / "out" / "early")
    with pytest.raises(NetError, match=r"already contains early.recipe\.net"):
        create_run_directory("x.net", tmp_path / "out")


@pytest.mark.parametrize("name", ["last", "best"])
def test_exchanged_checkpoints_are_told(tmp_path: Path, name: str) -> None:
    run(tmp_path / "other", NET.replace("relu", "gelu"))
    stopped(tmp_path / "out", 8)
    file = f"{name}.safetensors"
    (tmp_path / "out" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    before = kept(tmp_path / "out")
    with pytest.raises(NetError, match=r"different nets|belongs to a different run than"):
        go_on(tmp_path / "out")
    assert kept(tmp_path / "out") == before


def test_what_a_run_will_miss_at_its_end_is_told_before_it(tmp_path: Path) -> None:
    from tests.test_data import idx, write_mnist

    file = tmp_path / "x.npz"
    np.savez(file, images=np.zeros((600, 8, 8), np.uint8), labels=np.arange(600) % 10)
    text = NET.replace("source = digits", f'source = arrays("{file}")')
    expecting = text.replace("epochs = 2", "epochs = 2\n  expect test_accuracy > 0.5")
    with pytest.raises(NetError, match="the data set has no test images, so there is no `test_acc"):
        prepare_job(build_program(parse(expecting)), None)
    write_mnist(tmp_path, idx((9, 28, 28), bytes(9 * 784)), idx((9,), bytes(range(9))))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((9, 28, 28), bytes(784)))
    mnist = NET.replace("8x8x1", "28x28x1").replace("digits, batch = 256", "mnist, batch = 2")
    with pytest.raises(NetError, match="t10k-images-idx3-ubyte contains fewer values"):
        prepare_job(build_program(parse(mnist)), None, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("lr=1e39", "a number that float32 can hold"),
        ("lr=0.01, weight_decay=1e300", "a number that float32 can hold"),
        ("lr=0.01), accumulate = (30", "`accumulate` combines 30 batches of 256"),
    ],
)
def test_numbers_that_are_too_large(change: str, complaint: str) -> None:
    with pytest.raises(NetError) as e:
        prepare_job(build_program(parse(NET.replace("lr=0.01", change))), None)
    assert complaint in e.value.render()


def test_an_expectation_may_divide_by_a_difference() -> None:
    condition = "expect 1 / (test_loss - train_loss) > 0"
    text = NET.replace("epochs = 2", f"epochs = 2\n  {condition}")
    job = prepare_job(build_program(parse(text)), None)
    (met,) = judge_expectations(job.recipe.expectations, {"test_loss": 0.5, "train_loss": 0.5})
    assert not met.ok
    assert "division by zero" in met.figures


def test_limits_are_told(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    labels = np.full(600, 100_000)
    np.savez(file, images=np.zeros((600, 8, 8), np.uint8), labels=labels)
    for change, words in (
        (f'source = arrays("{file}")', "integers from 0 to 99,999"),
        ("validation = 5000, source = digits", "`validation` is a count, or a share below 1"),
    ):
        with pytest.raises(NetError) as e:
            prepare_job(build_program(parse(NET.replace("source = digits", change, 1))), None)
        assert words in e.value.render()


def test_a_line_of_metrics_costs_that_line(tmp_path: Path) -> None:
    """Not the whole file once more, which a run that is watched for long would choke on."""
    record = MetricsLog.restore(tmp_path / "metrics.jsonl", 0)
    record.add({"epoch": 1})
    node = record.path.stat().st_ino
    record.add({"epoch": 2, "train_loss": float("nan")})
    assert record.path.stat().st_ino == node
    assert record.count == 2
    assert record.path.read_text() == '{"epoch": 1}\n{"epoch": 2, "train_loss": null}\n'
