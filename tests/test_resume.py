"""A run that was cut off, wherever it was, goes on to the same bits as one that was not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.file_io import append_to_file
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.recipe.recipe import stage_names
from netdsl.training.run.callbacks import Result
from netdsl.training.run.stages import run_stages
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.watch import parse_watch
from netdsl.training.store import checkpoint, metrics_log
from netdsl.training.store.progress import TIMING_METRICS
from netdsl.training.store.resume import load_continuation
from tests.forged_checkpoints import rewrite_progress

NET = """
net small {
  input(8x8x1)
  conv(4, 3x3, pad=same, stride=2) -> batchnorm -> relu -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 64 }
train {
  optimizer = adam(lr=0.01), schedule = plateau(patience=0, warmup=1), epochs = 3, clip = 5
  accumulate = 2, ema = 0.9, keep_every = 2, patience = 2
}
"""
STAGED = NET + 'train late { after = early, init = none }\ntrain early { freeze = "conv1.*" }'
REFERENCE = open_backend("reference")


class Killed(BaseException):
    """The process is gone: nothing of it may tidy up."""


def run(out: Path, on_step: Callable[[], None] = lambda: None, **options: Any) -> Result:
    trainer = Trainer(build_program(parse(NET)), None, REFERENCE)
    return trainer.run(out, lambda p: on_step(), lambda m: None, **options)


def go_on(out: Path, *settings: str, **options: Any) -> Result:
    found = load_continuation(out, settings)
    trainer = Trainer(found.program, None, REFERENCE, saved=found.saved)
    return trainer.run(out, lambda p: None, lambda m: None, **options)


def kept(out: Path) -> dict[str, Any]:
    """All that a run keeps, but for the clock."""
    found: dict[str, Any] = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    for name in found:
        if name.endswith("metrics.jsonl"):
            lines = [json.loads(line) for line in found[name].splitlines()]
            found[name] = [{k: v for k, v in x.items() if k not in TIMING_METRICS} for x in lines]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return kept(out)


def test_a_run_keeps_what_it_should(whole: dict[str, Any]) -> None:
    assert sorted(whole) == [
        "best.safetensors",
        "epoch-0002.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "recipe.net",
    ]


@pytest.mark.parametrize("updates", [1, 9, 10, 11, 15, 29])
def test_stopped_when_asked_and_resumed(
    whole: dict[str, Any], tmp_path: Path, updates: int
) -> None:
    count = 0

    def seen() -> None:
        nonlocal count
        count += 1

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seen, should_stop=lambda: count >= updates)
    assert checkpoint.load(tmp_path / "last.safetensors").progress["update"] == updates
    go_on(tmp_path)
    assert kept(tmp_path) == whole


def test_what_is_watched_is_written_once(tmp_path: Path) -> None:
    looking = {"watch": parse_watch("gradients", 4)}
    run(tmp_path / "whole", **looking)
    asked = iter([False] * 12 + [True] * 9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", should_stop=lambda: next(asked), **looking)
    go_on(tmp_path / "out", **looking)
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_stopped_again_and_again(whole: dict[str, Any], tmp_path: Path) -> None:
    answers = iter(([False] * 2 + [True]) * 1000)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, should_stop=lambda: next(answers))
    for _ in range(100):
        try:
            go_on(tmp_path, should_stop=lambda: next(answers))
            break
        except KeyboardInterrupt:
            continue
    assert kept(tmp_path) == whole


@pytest.mark.parametrize("write", range(1, 14))
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_and_resumed(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int, after: bool
) -> None:
    """Just before and just after each file takes its place; in the middle of a line and after."""
    count = 0

    def dying(real: Callable[..., None], half: Callable[..., None]) -> Callable[..., None]:
        def writing(*given: Any) -> None:
            nonlocal count
            count += 1
            if count == write and not after:
                half(*given)
                raise Killed
            real(*given)
            if count == write:
                raise Killed

        return writing

    half = lambda path, content: append_to_file(path, content[: len(content) // 2])
    with monkeypatch.context() as m:
        m.setattr(os, "replace", dying(os.replace, lambda a, b: None))
        m.setattr(metrics_log, "append_to_file", dying(append_to_file, half))
        try:
            run(tmp_path)
            assert write > 12
        except Killed:
            (tmp_path / ".netdsl-leftover").write_bytes(b"half of a checkpoint")
    if count == 1 and not after:
        with pytest.raises(NetError, match="does not contain a run"):
            load_continuation(tmp_path)
    else:
        go_on(tmp_path)
        assert kept(tmp_path) == whole


def test_killed_in_a_stage_and_resumed(tmp_path: Path) -> None:
    p = build_program(parse(STAGED))
    steps = 0

    def watching(limit: int) -> Any:
        def watch(progress: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == limit:
                raise Killed

        return lambda trainer, out: trainer.run(out, watch, lambda m: None)

    run_stages(p, "late", REFERENCE, None, tmp_path / "a", watching(-1))
    assert (tmp_path / "a" / "early" / "best.safetensors").exists()
    total = steps
    for limit in (5, total // 2 - 2, total // 2 + 12):
        steps, out = 0, tmp_path / str(limit)
        with pytest.raises(Killed):
            run_stages(p, "late", REFERENCE, None, out, watching(limit))
        found = load_continuation(out)
        run_stages(found.program, None, REFERENCE, None, out, watching(-1), found.saved)
        assert kept(tmp_path / "a") == kept(out)


QUICK = """
net small { input(8x8x1); conv1: conv(2, 3x3, stride=4); relu -> fc(10) }
data { source = digits, batch = 128 }
data other { batch = 64 }
data unread { batch = 32 }
"""
NAMED = {
    "late": "train early { freeze = conv, data = other }\n"
    "train late { after = early, expect val_accuracy > 0.01 }",
    "third": "train { expect val_accuracy > 0.01 }\ntrain first { }\n"
    "train second { after = first, expect val_loss < 9 }\ntrain third { after = second }",
    "alone": "train { clip = 1 }\ntrain alone { data = other, expect train_loss < 9 }",
    "of": "train { after = pre }\ntrain pre { after = none }\ntrain of { data = other }",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_by_its_name_is_written_and_resumed_the_same(name: str, tmp_path: Path) -> None:
    """Recipes that inherit data and expectations, and one that comes after others, whenever it was
    cut off: in the directory of each stage stands what stood there."""
    recipes = NAMED[name].replace("freeze = conv", 'freeze = "conv1.*"')
    p = build_program(parse(QUICK + re.sub(r"train( \w+)? {", r"\g<0> epochs = 1,", recipes)))
    go = lambda trainer, out: trainer.run(out, lambda p: None, lambda m: None)
    whole = tmp_path / "whole"
    run_stages(p, name, REFERENCE, None, whole, go)
    expected = kept(whole)
    heads = {k: v.splitlines()[0].decode() for k, v in expected.items() if k.endswith("recipe.net")}
    for path, head in heads.items():
        assert head.endswith(f", train {Path(path).parent.name or name}"), head
    before = [str(stage) for stage in stage_names(p, name)[:-1]]
    assert "expect" not in "".join((whole / x / "recipe.net").read_text() for x in before)
    for done in range(len(before) + 2):
        out = tmp_path / str(done)
        shutil.copytree(whole, out)
        if done <= len(before):
            not_begun(out)
        for stage in before[done:]:
            shutil.rmtree(out / stage)
        found = load_continuation(out)
        run_stages(found.program, None, REFERENCE, None, out, go, found.saved)
        assert kept(out) == expected


def test_what_is_wrong_with_a_later_stage_is_told_at_once(tmp_path: Path) -> None:
    text = STAGED.replace("after = early,", "after = early, data = large,")
    p = build_program(parse(text + "\ndata large { source = digits, batch = 2000 }"))
    with pytest.raises(NetError, match="a batch of 4000 is larger"):
        run_stages(p, "late", REFERENCE, None, tmp_path / "out", lambda trainer, out: 1 / 0)
    assert not (tmp_path / "out").exists()


def not_begun(out: Path) -> None:
    """As if a run had been cut off before the last of its stages."""
    for path in out.glob("*.*"):
        if path.name != "recipe.net":
            path.unlink()


def test_a_stage_that_is_over_goes_on_with_more_epochs_before_the_next_begins(
    tmp_path: Path,
) -> None:
    p = build_program(parse(STAGED))
    go = lambda trainer, out: trainer.run(out, lambda p: None, lambda m: None)
    run_stages(p, "late", REFERENCE, None, tmp_path, go)
    not_begun(tmp_path)
    found = load_continuation(tmp_path, ["train.early.epochs=5", "train.patience=none"])
    run_stages(found.program, None, REFERENCE, None, tmp_path, go, found.saved)
    assert checkpoint.load(tmp_path / "early" / "last.safetensors").progress["epoch"] == 5
    rewrite_progress(tmp_path / "early" / "last.safetensors", epoch="x")
    not_begun(tmp_path)
    with pytest.raises(
        NetError, match=r"damaged: `metadata\.progress\.epoch` is \"x\", not an integer"
    ):
        run_stages(found.program, None, REFERENCE, None, tmp_path, go)


def test_changes_do_not_reach_a_stage_that_is_over(tmp_path: Path) -> None:
    p = build_program(parse(STAGED))
    go = lambda trainer, out: trainer.run(out, lambda p: None, lambda m: None)
    run_stages(p, "late", REFERENCE, None, tmp_path, go)
    found = load_continuation(tmp_path, ["train.epochs=4"])
    assert found.changes == {"train.epochs": ("3", "4")}
    with pytest.raises(NetError, match="the stage `early` is complete"):
        load_continuation(tmp_path, ["train.early.epochs=4"])
    not_begun(tmp_path)
    assert load_continuation(tmp_path, ["train.early.epochs=4"]).changes
    with pytest.raises(
        NetError, match=r"`train.early.seed` cannot be changed in the middle of a run"
    ):
        load_continuation(tmp_path, ["train.early.seed=4"])


def test_changes_are_made_and_written_down(whole: dict[str, Any], tmp_path: Path) -> None:
    count = 0

    def seen() -> None:
        nonlocal count
        count += 1

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seen, should_stop=lambda: count >= 14)
    go_on(
        tmp_path, "train.epochs=4", "data.batch=32", "train.optimizer.lr=0.001", "train.patience=9"
    )
    text = (tmp_path / "recipe.net").read_text()
    assert "# resumed after 14 updates: " in text
    for words in ("data.batch = 32 (was 64)", "train.epochs = 4 (was 3)", "lr=0.001"):
        assert words in text
    lines = kept(tmp_path)["metrics.jsonl"]
    assert [x["epoch"] for x in lines[:-1]] == [1, 2, 3, 4]
    assert lines[0] == whole["metrics.jsonl"][0]
    assert lines[2]["lr"] <= 0.00101
    # 1,294 images: 10 updates of 2 * 64, then 4 of them and 24 of 2 * 32 that are left
    assert [x["step"] for x in lines[:3]] == [10, 14 + 12, 26 + 20]
    saved = checkpoint.load(tmp_path / "last.safetensors")
    assert saved.progress["changes"]
    go_on(tmp_path)
    assert (tmp_path / "recipe.net").read_text() == text


@pytest.mark.parametrize("count", [1, 4])
def test_how_many_batches_make_an_update_can_change(tmp_path: Path, count: int) -> None:
    begun(tmp_path)
    go_on(tmp_path, f"train.accumulate={count}")
    steps = [x.get("step") for x in kept(tmp_path)["metrics.jsonl"]]
    assert steps[2] - steps[1] == 20 // count
    assert not [n for n in checkpoint.load(tmp_path / "last.safetensors").states if "gradient" in n]


def test_a_change_is_not_forgotten_when_the_run_is_killed_again(tmp_path: Path) -> None:
    begun(tmp_path)
    found = load_continuation(tmp_path, ["train.epochs=4", "train.patience=none"])
    trainer = Trainer(found.program, None, REFERENCE, saved=found.saved)

    def killed(p: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        trainer.run(tmp_path, killed, lambda m: None)
    assert load_continuation(tmp_path).changes == {}
    go_on(tmp_path)
    assert [x.get("epoch") for x in kept(tmp_path)["metrics.jsonl"]] == [1, 2, 3, 4, None]
    assert "train.epochs = 4 (was 3)" in (tmp_path / "recipe.net").read_text()


def test_a_finished_run_goes_on_with_more_epochs(whole: dict[str, Any], tmp_path: Path) -> None:
    for name, content in whole.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
    lines = [json.dumps(x) for x in whole["metrics.jsonl"]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    go_on(tmp_path)
    assert kept(tmp_path) == whole
    # other settings would train nothing, and be recorded as those of the figures
    with pytest.raises(NetError, match="complete after 3 epochs, and these changes do not"):
        go_on(tmp_path, "train.clip=1")
    assert kept(tmp_path) == whole
    go_on(tmp_path, "train.epochs=5", "train.patience=none")
    epochs = [x.get("epoch") for x in kept(tmp_path)["metrics.jsonl"]]
    assert epochs == [1, 2, 3, 4, 5, None]


def begun(out: Path) -> None:
    asked = iter([False] * 12 + [True] * 9)
    with pytest.raises(KeyboardInterrupt):
        run(out, should_stop=lambda: next(asked))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.seed=2", "`train.seed` cannot be changed in the middle of a run"),
        ("data.validation=0.5", "`data.validation` cannot be changed"),
        ("data.source=mnist", "`data.source` cannot be changed"),
        ("train.loss=bce", "`train.loss` cannot be changed .* values of one loss"),
        ("train.loss=cross_entropy(smoothing=0.1)", "`train.loss` cannot be changed"),
        ("data.eval_transform=[resize(10)]", "`data.eval_transform` cannot be changed"),
        ("train.optimizer=lars", r"no state `conv1.weight.velocity` and .* another `optimizer`"),
        ("train.epochs=many", "must be an integer"),
    ],
)
def test_what_cannot_change_half_way(tmp_path: Path, setting: str, complaint: str) -> None:
    begun(tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(NetError, match=complaint):
        go_on(tmp_path, setting)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_mismatched_checkpoint_says_which_shapes_differ(tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / "last.safetensors"
    saved = checkpoint.load(path)
    text = saved.net_text.replace("conv(4,", "conv(6,")
    assert text != saved.net_text
    checkpoint.save(path, replace(saved, net_text=text))
    with pytest.raises(NetError, match="belong to different nets"):
        go_on(tmp_path)
    (tmp_path / "recipe.net").unlink()
    with pytest.raises(NetError) as e:
        go_on(tmp_path)
    assert "`conv1.weight` is 4x3x3x1, but the net needs 6x3x3x1" in e.value.render()


@pytest.mark.parametrize("key", ["epoch", "history", "loss", "seen"])
def test_odd_progress_is_told(tmp_path: Path, key: str) -> None:
    begun(tmp_path)
    path = tmp_path / "last.safetensors"
    rewrite_progress(path, **{key: "x"})
    with pytest.raises(NetError, match=rf"last\.safetensors.*`metadata\.progress\.{key}`"):
        go_on(tmp_path)


def test_metrics_that_were_damaged_are_made_from_the_checkpoint(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    begun(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1')
    go_on(tmp_path)
    assert kept(tmp_path)["metrics.jsonl"] == whole["metrics.jsonl"]


def test_a_read_only_directory_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").chmod(0o444)
    with pytest.raises(NetError, match="read-only"):
        go_on(tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert checkpoint.load(tmp_path / "last.safetensors").progress["epoch"] == 1
