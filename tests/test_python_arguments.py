"""What the functions of Python are given besides images: each mistake has an error that says so."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netdsl as package
from netdsl.foreign_names import NAMES_OF_MODULES, NAMES_OF_NETS

NET = """net tiny { input(2x2x1) -> fc(2) }
data { batch = 2, validation = 0 }
train { epochs = 2 }
"""
DATA = np.arange(24, dtype=np.uint8).reshape(6, 2, 2), np.arange(6) % 2
SETTINGS: list[tuple[Any, str, str]] = [
    ("train.epochs=1", "`set` is of type str", "a dict"),
    ([("train.epochs", 1)], "`set` is of type list", "a dict"),
    ({3: 1}, "`3` in `set` is not the name", "a dict"),
    ({"train.epochs=3": 1}, "`train.epochs=3` in `set` is not the name", "a dict"),
    ({"": 1}, "`` in `set` is not the name", "a dict"),
    ({"train.epochs": "many"}, "must be an integer, not many", "no variable is called `many`"),
    ({"train.freeze": ["fc.*"]}, "`.` does not belong here", 'their own quotes: {"train.freeze'),
    ({"train.freeze": "fc*.x"}, "does not belong here", "'\"conv1.*\"'"),
    ({"train.init": "../a b/x"}, "help", "their own quotes"),
    ({"train.optimizer": "adam(lr=0.1"}, "a `)` is missing", "is not closed"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.net").write_text(NET)
    return tmp_path / "tiny.net"


@pytest.mark.parametrize(("given", "message", "help"), SETTINGS)
def test_a_setting_that_is_wrong_says_how_it_is_written(
    file: Path, given: Any, message: str, help: str
) -> None:
    with pytest.raises(package.NetError) as e:
        package.train(file, data=DATA, set=given, out=file.parent / "run")
    assert message in str(e.value)
    assert help in str(e.value)
    assert "command line" not in str(e.value)
    assert "--" not in str(e.value)


@pytest.mark.parametrize(
    ("setting", "help"),
    [
        ("train.epochs=many", "no variable is called `many` here"),
        ("data.limit=12.5%", "help: a percentage is a share of 1: `--set data.limit=0.125`"),
        ("train.batch=1,2", "help: several values are a list in brackets: `--set 'train.batch=[1"),
        ("train.freeze=fc.*", "help: globs and paths need their own quotes: --set '"),
    ],
)
def test_the_command_gives_the_same_advice(
    file: Path, netdsl: Any, setting: str, help: str
) -> None:
    code, _, error = netdsl("train", "tiny.net", "--set", setting)
    assert code == 2
    assert help in error
    assert "did you mean" not in error
    assert f"| --set {setting.partition('.')[0]}." in error


def test_a_setting_of_a_section_is_suggested_with_the_section(file: Path, netdsl: Any) -> None:
    code, _, error = netdsl("train", "tiny.net", "--set", "limit=5")
    assert code == 2
    assert "help: `limit` is a key of the data section: `data.limit`" in error


def test_a_word_that_another_parameter_knows_is_still_found(file: Path, netdsl: Any) -> None:
    file.write_text(NET.replace("-> fc", "-> conv(4, same) -> fc"))
    code, _, error = netdsl("check", "tiny.net")
    assert code == 2
    assert "did you mean `pad=same`?" in error


@pytest.mark.parametrize(
    ("device", "help"),
    [
        ("gpu", "did you mean `cuda`?"),
        ("cuda:0", "did you mean `cuda`?"),
        ("CPU", "did you mean `cpu`?"),
        (None, "devices: auto, cpu, cuda"),
    ],
)
def test_a_device_is_checked_before_any_work(file: Path, device: Any, help: str) -> None:
    for use in (package.load, lambda f, d: package.train("nowhere.net", device=d)):
        with pytest.raises(package.NetError, match="there is no device") as e:
            use(file, device)
        assert help in str(e.value)


def test_places_that_are_none_are_refused(file: Path) -> None:
    net, out = package.load(file, device="cpu"), file.parent / "run"
    for wrong, use in [
        ("`file` is of type Net", lambda: package.train(net)),  # type: ignore[arg-type]
        ("`file` is of type int", lambda: package.train(3)),  # type: ignore[arg-type]
        ("`place` is of type NoneType", lambda: package.load(None)),  # type: ignore[arg-type]
        ("`out` is of type int", lambda: package.train(file, out=3)),  # type: ignore[arg-type]
        ("there is a file of that name", lambda: package.train(file, data=DATA, out=file)),
        ("cannot create", lambda: package.train(file, data=DATA, out=file / "run")),
        ("cannot create", lambda: package.train(file, data=DATA, out="a\0b")),
        ("has no `source`", lambda: package.train(file, out=out)),
    ]:
        with pytest.raises(package.NetError, match=re.escape(wrong)):
            use()
    assert not out.exists()


def test_a_run_on_arrays_asks_for_them_when_it_is_resumed(file: Path) -> None:
    out = file.parent / "run"
    package.train(file, data=DATA, out=out, set={"train.epochs": 1}, device="cpu")
    with pytest.raises(package.NetError, match="trained on data passed to it") as e:
        package.train(resume=out, set={"train.epochs": 2})
    assert "data=..." in str(e.value)
    with pytest.raises(package.NetError, match="does not contain a run"):
        package.train(resume=file.parent / "nowhere")


OTHER_CALLS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {"epochs": 1}, '{"train.epochs": 1}'),
    ((), {"learning_rate": 0.1}, '{"train.optimizer.lr": 0.1}'),
    ((), {"batch_size": 8}, '{"data.batch": 8}'),
    ((), {"callbacks": []}, "`on_epoch=`"),
    ((), {"x": 1, "y": 2}, "`data=(images, labels)`"),
    ((), {"validation_data": 1}, '"x_val"'),
    ((), {"output_dir": "a"}, '`out="DIR"`'),
    ((), {"nonsense": 1}, "`set` takes a dict"),
    ((1, 2), {}, "`data=(images, labels)`"),
]


@pytest.mark.parametrize(("others", "named", "help"), OTHER_CALLS)
def test_an_argument_that_train_does_not_have_says_what_there_is(
    others: tuple[Any, ...], named: dict[str, Any], help: str
) -> None:
    with pytest.raises(package.NetError) as e:
        package.train("x.net", *others, **named)
    assert help in str(e.value.diagnostics[0].help)


def test_names_of_other_libraries_lead_to_ours(file: Path) -> None:
    net = package.load(file)
    for owner, table in ((net, NAMES_OF_NETS), (package, NAMES_OF_MODULES)):
        for name, instead in table.items():
            with pytest.raises(AttributeError, match=re.escape(instead)):
                getattr(owner, name)
            for quoted in re.findall(r"netdsl\.(\w+)\(", instead):
                assert quoted in package.__all__
            for quoted in re.findall(r"\bnet\.(\w+)", instead):
                assert quoted in dir(net)
        with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
            owner.nonsense  # noqa: B018
    assert pickle.loads(pickle.dumps(net)).name == copy.copy(net).name == "tiny"


def test_a_net_that_is_called_or_given_as_text_says_how_it_is_loaded(file: Path) -> None:
    with pytest.raises(package.NetError, match=r"netdsl\.load"):
        package.Net(str(file))  # type: ignore[arg-type]
    with pytest.raises(package.NetError, match="write it to a file first"):
        package.load(NET)


def test_a_weight_that_is_not_there_names_those_that_are(file: Path) -> None:
    weights = package.load(file).weights
    with pytest.raises(KeyError, match=r"there are 'fc1\.weight', 'fc1\.bias'"):
        weights["fc1"]
    with pytest.raises(KeyError, match=r"there are 'fc1\.weight'"):
        weights["fc1.wieght"]
    assert set(weights) == {"fc1.weight", "fc1.bias"}


def test_a_prediction_is_no_dictionary(file: Path) -> None:
    net = package.load(file, device="reference")
    prediction = net.predict(DATA[0][:1, :, :, None])[0]
    with pytest.raises(TypeError, match=r"not keys: write `prediction\.probability`"):
        prediction["probability"]
    with pytest.raises(TypeError, match=r"not keys: write `prediction\.label`"):
        prediction["class"]


def test_what_is_loaded_exists(tmp_path: Path) -> None:
    with pytest.raises(package.NetError, match=r"there is no run or file .*last\.pt"):
        package.load(tmp_path / "last.pt")
    (tmp_path / "runs" / "digits-1").mkdir(parents=True)
    (tmp_path / "runs" / "digits-1" / "best.safetensors").touch()
    with pytest.raises(package.NetError) as caught:
        package.load(tmp_path / "run" / "digits")
    found = tmp_path / "runs" / "digits-1"
    assert caught.value.diagnostics[0].help == f"did you mean `{found}`?"
