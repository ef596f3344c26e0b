"""The command line on several processes: one run, which ends on all of them."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from tests.rank_processes import FinishedRanks, run_command, run_each, run_with_fault
from tests.test_bad_pictures import PARTS, cut
from tests.test_folder import NET as COLOURS
from tests.test_folder import write

TEXT = """
net small {
  input(8x8x1) -> conv(4, 3x3, pad=same) -> relu -> maxpool(2x2) -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 48, limit = 480 }
train { optimizer = sgd(lr=0.05, momentum=0.9), epochs = 4 }
"""
HOST = socket.gethostname()
STEPS = 10


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "small.net").write_text(TEXT)
    return "small.net"


def load_last(folder: Path) -> Checkpoint:
    return checkpoint.load(folder / "last.safetensors")


def read_epochs(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [m["epoch"] for line in lines if "train_loss" in (m := json.loads(line))]


def check_one_run(folder: Path, epochs: int = 4) -> None:
    """One directory, with a line for each epoch."""
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]
    assert read_epochs(folder) == list(range(1, epochs + 1))


def test_a_run_is_preempted_and_queued_again(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run", "--device", "reference", "--requeue"]
    out = tmp_path / "run"
    found = run_with_fault(tmp_path, 3, "preempt", 2, 14, *command)
    assert found.exit_code == 130
    assert found.err.count("epoch 1/4") == 1
    assert found.err.count("interrupted; everything that was saved is kept") == 1
    assert found.err.count("resume it with") == 1
    assert found.err.count("saving after this step") <= 1
    stopped = load_last(out)
    assert STEPS + 3 <= stopped.progress["update"] < 4 * STEPS
    again = run_command([sys.executable, "-m", "netdsl", *command, "--ranks", "2"], tmp_path)
    assert again.exit_code == 0
    assert again.err.startswith("2 ranks, started by ")
    check_one_run(out)
    assert load_last(out).progress["update"] == 4 * STEPS
    alone = [sys.executable, "-m", "netdsl", "train", file, "-o", "alone", "--device", "reference"]
    assert run_command(alone, tmp_path).exit_code == 0
    expected = load_last(tmp_path / "alone").states
    for name, values in load_last(out).states.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-4)


def test_a_killed_rank_ends_the_others_and_loses_nothing(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run", "--device", "reference"]
    found = run_with_fault(tmp_path, 3, "kill", 1, STEPS + 3, *command)
    assert found.exit_code != 0
    assert load_last(tmp_path / "run").progress["update"] == STEPS
    again = ["train", "--resume", "run", "--device", "reference", "--json"]
    resumed = run_with_fault(tmp_path, 2, "nothing", 0, 0, *again)
    assert resumed.exit_code == 0
    report = json.loads(resumed.out)
    assert (report["ranks"], report["epochs"]) == (2, 4)
    check_one_run(tmp_path / "run")


@pytest.mark.slow
def test_a_bug_on_one_rank_ends_all_of_them(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run", "--device", "reference"]
    found = run_with_fault(tmp_path, 3, "bug", 2, 3, *command)
    assert found.exit_code == 70
    assert f"rank 2 on {HOST}: Traceback" in found.err
    assert "ZeroDivisionError: planted\nthis is a bug in netdsl" in found.err
    assert found.err.count("Traceback") == 1


@pytest.mark.slow
def test_the_watchdog_ends_a_run_that_waits(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run", "--device", "reference"]
    found = run_with_fault(tmp_path, 2, "sleep", 1, 3, *command, NETDSL_RANK_TIMEOUT="3")
    assert found.exit_code == 2
    wait = f"the ranks wait for rank 1 on {HOST}, which is in epoch 1, step 2 of 10"
    assert f"after 1 s, {wait}\n" in found.err
    assert f"error: after 3 s, {wait}, so the run ends\n" in found.err


def check_refusal(found: FinishedRanks, folder: Path, *parts: str) -> None:
    """Refused once, before anything was written."""
    assert found.exit_code == 2
    assert found.err.count("error: ") == 1
    for part in parts:
        assert part in found.err
    assert not (folder / "run").exists()


def test_different_options_and_files_are_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "other.net").write_text(TEXT.replace("0.2", "0.3"))
    command = ["train", file, "-o", "run"]
    found = run_each(tmp_path, command, [*command, "--set", "train.epochs=2"])
    text = f"`--set` is `train.epochs=2` on rank 1 on {HOST}"
    check_refusal(found, tmp_path, "do not start from the same: `--set` differs", text)
    found = run_each(tmp_path, command, ["train", "other.net", "-o", "run"])
    check_refusal(found, tmp_path, "the net with its recipe differs")


@pytest.mark.slow
def test_different_data_are_refused(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8)).astype(np.uint8)
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", images=images, labels=np.arange(40) % 10)
    (tmp_path / "x.net").write_text(
        "net small { input(8x8x1) -> fc(10) }\n"
        'data { source = arrays("x.npz"), batch = 8 }\n'
        "train { optimizer = sgd(lr=0.1), epochs = 1 }\n"
    )
    commands = [["train", "x.net", "-o", "run", "--data", name] for name in "ab"]
    found = run_each(tmp_path, *commands)
    check_refusal(
        found, tmp_path, f"the data of rank 1 on {HOST} differ from those of rank 0 on {HOST}"
    )


def test_an_error_of_all_ranks_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "bad.net").write_text("net small {")
    command = ["train", "bad.net", "-o", "run"]
    found = run_each(tmp_path, command, command, command)
    check_refusal(found, tmp_path, "error: a `}` is missing\n  bad.net:1:12")
    assert found.err.startswith("error: ")


@pytest.mark.slow
def test_an_error_of_one_rank_names_it(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run"]
    found = run_each(tmp_path, command, ["train", "none.net", "-o", "run"])
    check_refusal(found, tmp_path, f"rank 1 on {HOST}: error: cannot read none.net")
    found = run_with_fault(tmp_path, 4, "error", 3, 5, *command)
    assert found.exit_code == 2
    assert f"rank 3 on {HOST}: error: a planted error\nhelp: none\n" in found.err


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path: Path, file: str) -> None:
    random = Random(0)
    command = ["train", file, "--device", "reference", "--set", "train.epochs=60"]
    reached = []
    for _ in range(20):
        rank, update = random.randrange(4), random.randrange(1, 3 * STEPS)
        found = run_with_fault(
            tmp_path, 4, "kill soon", rank, update, *command, "-o", "run", "--requeue"
        )
        assert found.exit_code != 0
        assert found.seconds < 60
        last = tmp_path / "run" / "last.safetensors"
        reached.append(load_last(tmp_path / "run").progress["update"] if last.exists() else 0)
    assert reached == sorted(reached)
    final = run_with_fault(tmp_path, 4, "nothing", 0, 0, *command, "-o", "run", "--requeue")
    whole = run_with_fault(tmp_path, 4, "nothing", 0, 0, *command, "-o", "whole")
    assert (final.exit_code, whole.exit_code) == (0, 0)
    assert read_epochs(tmp_path / "run") == list(range(1, 61))
    expected = load_last(tmp_path / "whole").states
    for name, values in load_last(tmp_path / "run").states.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path: Path, file: str) -> None:
    command = ["train", file, "-o", "run", "--device", "reference"]
    found = run_with_fault(tmp_path, 3, "terminate twice", 1, 3, *command)
    assert found.exit_code == 130
    assert f"rank 1 on {HOST}: interrupted; everything that was saved is kept" in found.err
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.slow
def test_a_bad_picture_on_one_rank_is_named(tmp_path: Path) -> None:
    for seed, (part, count) in enumerate(PARTS.items()):
        write(tmp_path / "pictures" / part, count, seed=seed)
    (tmp_path / "colours.net").write_text(COLOURS.replace("6,", "3,").replace("0.9", "0"))
    before = cut(tmp_path / "pictures" / "train" / "red" / "003.jpg")
    command = ["train", "colours.net", "-o", "run", "--device", "reference"]
    found = run_with_fault(tmp_path, 2, "nothing", 0, 0, *command)
    assert found.exit_code == 2
    assert re.search(
        rf"rank \d on {HOST}: error: .*train/red/003.jpg is not a readable picture", found.err
    )
    assert found.err.count("error:") == 1
    (tmp_path / "pictures" / "train" / "red" / "003.jpg").write_bytes(before)
    assert run_with_fault(tmp_path, 2, "nothing", 0, 0, *command, "--requeue").exit_code == 0
