"""A command line with a mistake is answered with the line that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from netdsl import cli
from netdsl.cli.usage_advice import explain
from netdsl.data.config import SIGNATURE as DATA_SIGNATURE
from netdsl.errors import NetError
from netdsl.foreign_advice import ADVICE
from netdsl.language.elaborate import elaborate
from netdsl.language.override import PythonSetting, Setting, parse_setting
from netdsl.language.parse import parse
from netdsl.language.syntax import ListLiteral
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN_SIGNATURE
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.settings import SECTION_KEYS, override_recipe

BARE = "net n { input(8x8x1); fc(10) }\ndata { source = digits }\ntrain { epochs = 1 }\n"
NAMED = BARE + "train b { epochs = 2 }\n"


@pytest.mark.parametrize(
    ("args", "help"),
    [
        ("fit f.net", "write `netdsl train FILE`"),
        ("run f.net", "for example: `netdsl run models"),
        ("validate f.net", "write `netdsl check FILE` or `netdsl eval WEIGHTS`"),
        ("build f.net", "write `netdsl compile FILE`"),
        ("help", "write `netdsl --help`"),
        ("resume runs/a", "write `netdsl train --resume DIR`"),
        ("infer runs/a a.png", "write `netdsl predict WEIGHTS IMAGE`"),
        ("lint f.net", "write `netdsl check FILE`"),
        ("evaluate runs/a", "write `netdsl eval WEIGHTS`"),
        ("sumary f.net", "did you mean `summary`?"),
        ("f.net", "a command comes first: `netdsl check f.net`, `netdsl train f.net`"),
        ("f.net:b", "a command comes first: `netdsl check f.net:b`, `netdsl train f.net:b`"),
        ("train f.net --epochs 5", "write `--set train.epochs=5`"),
        ("train f.net --epochs=5", "write `--set train.epochs=5`"),
        ("train --batch-size 4 f.net", "write `--set data.batch=4`"),
        ("train f.net --lr 0.1", "write `--set train.optimizer.lr=0.1`"),
        ("train f.net --seed 3", "write `--set train.seed=3`"),
        ("train f.net --optimizer adam", "write `--set train.optimizer=adam`"),
        ("train f.net --lr", "write `--set train.optimizer.lr=...`"),
        ("train f.net --gpu", "write `--device cuda`"),
        ("train f.net --dryrun", "did you mean `--dry-run`?"),
        ("train f.net --verbose", "`netdsl train --help` lists the options"),
        ("eval w --batch-size 3", "`data.batch` is read from the weights"),
        ("train f.net --set train.epochs 5", "write `--set train.epochs=5`"),
        ("train f.net b", "a net or recipe of a file is named with a colon: `f.net:b`"),
        ("train f.net train.epochs=5", "write `--set train.epochs=5`"),
        ("train --config f.net", "a file is named without an option: write `netdsl train f.net`"),
        ("train --config=f.net --dry-run", "write `netdsl train f.net --dry-run`"),
        ("eval w --split val", "without an option, the test images are used"),
        ("export w --format onnx", "the suffix of `-o` chooses the format"),
        ("export w -o x.pt", "PyTorch reads `-o x.safetensors --layout torch`"),
        ("export w -o x.h5", "`-o x.onnx` writes a model"),
        ("activations w c1 f.net -o x.png", "write `netdsl activations w f.net c1 -o x.png`"),
        ("visualize w c1/3 -o x.png", "write `c1:3`"),
        ("visualize w c1[3] -o x.png", "write `c1:3`"),
        ("train f.net --set train.schedule.eta_min=1", "did you mean `train.schedule.end`?"),
        ("train f.net --set train.optimizer.learning_rate=1", "did you mean `train.optimizer.lr`?"),
        ("train f.net --set train.seed=1,2", "`netdsl sweep FILE --seeds 1,2`"),
        ("train f.net --set net.fc.units=9", "`fc` is a layer: give the net a parameter"),
        ("train f.net --set fc=9", "`fc` is a layer: give the net a parameter"),
        (
            "train f.net --set train.expect=none",
            "belong in the recipe itself: `expect val_accuracy",
        ),
        ("check", "for example: `netdsl check models/lenet.net`"),
        ("predict w", "for example: `netdsl predict runs/digits-1/best.safetensors three.png`"),
        ("import x.onnx", "for example: `netdsl import squeezenet.onnx -o squeezenet.net"),
        ("export w", "for example: `netdsl export runs/cifar-1 -o cifar.onnx`"),
        ("train f.net --data", "for example: `netdsl train models/digits.net"),
        ("train --resume", "name the run's directory: `--resume runs/good`"),
        ("train --resume runs", "runs are: `--resume runs/good`"),
        ("train --resume runs/goood", "runs are: `--resume runs/good`"),
        ("train --resume runs/good/best.safetensors", "of a run: `--resume runs/good`"),
        ("train f", "did you mean f.net?"),
        ("train f.nett", "did you mean f.net?"),
        ("check f.py", "did you mean f.net?"),
        ("train f.net:b --set b.epochs=4", "did you mean `train.b.epochs`?"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(
    netdsl: Any, tmp_path: Path, args: str, help: str
) -> None:
    (tmp_path / "f.net").write_text(NAMED)
    run = tmp_path / "runs" / "good"
    run.mkdir(parents=True)
    (run / "recipe.net").write_text(BARE)
    (run / "best.safetensors").write_bytes(b"")
    code, out, err = netdsl(*args.split())
    assert code == 2
    assert not out
    error, _, advice = err.rstrip().partition("\nhelp: ")
    assert error.startswith("error: ")
    assert help in advice


def test_every_other_name_leads_to_a_command_or_an_option() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for names, usage in ADVICE["command"].items():
        assert not {*names.split()} & {*commands}
        assert usage.split()[0] in (*commands, "--help", "--version")
    options = {o for c in commands.values() for p in c.params for o in p.opts}
    assert {usage.split()[0] for usage in ADVICE["option"].values()} <= options


def test_another_problem_is_left_as_it_is() -> None:
    assert explain("Invalid value for '--shrink': 0", ["train"], {}) == (
        "Invalid value for '--shrink': 0"
    )


# ---- keys of `--set` --------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(SECTION_KEYS.default_calls))
def test_an_argument_of_a_default_call_can_be_set(key: str) -> None:
    parameter = {"optimizer": "lr", "schedule": "warmup", "loss": "smoothing"}[key.split(".")[1]]
    recipe = resolve_recipe(override_recipe(parse(BARE), [f"{key}.{parameter}=0.25"], None))
    chosen = {
        "train.optimizer": recipe.optimizer,
        "train.schedule": recipe.schedule,
        "train.loss": recipe.loss.terms[0][0],
    }[key]
    assert chosen.name == SECTION_KEYS.default_calls[key]
    assert chosen.arguments[parameter] == 0.25


@pytest.mark.parametrize("order", [1, -1])
def test_a_parameter_is_set_in_the_net_that_another_setting_chooses(order: int) -> None:
    text = (
        "net n(width=2) { input(8x8x1); fc(width) }\nnet a = n(width=3)\nnet b = n(width=4)\n"
        "train { net = a }"
    )
    settings = ["train.net=b", "width=7"][::order]
    program = override_recipe(parse(text), settings, None)
    outputs = {name: elaborate(program, name).main_output.type.shape for name in ("a", "b")}
    assert outputs == {"a": (1, 3), "b": (1, 7)}


def test_only_the_sections_with_a_call_are_set_where_there_is_one() -> None:
    text = NAMED.replace("epochs = 2", "optimizer = adam")
    program = override_recipe(parse(text), ["train.optimizer.lr=0.25"], None)
    assert resolve_recipe(program, "b").optimizer.arguments["lr"] == 0.25
    assert resolve_recipe(program).optimizer.arguments["lr"] == 0.01


@pytest.mark.parametrize(
    ("written", "setting", "found"),
    [
        ("sgd(0.1)", "train.optimizer.lr=0.25", {"lr": 0.25}),
        ("sgd(0.1, 0.9)", "train.optimizer.momentum=0.5", {"lr": 0.1, "momentum": 0.5}),
        ("sgd(0.1)", "train.optimizer.momentum=0.5", {"lr": 0.1, "momentum": 0.5}),
        ("sgd(momentum=0.9)", "train.optimizer.lr=0.25", {"lr": 0.25, "momentum": 0.9}),
    ],
)
def test_an_argument_written_by_its_position_is_replaced(
    written: str, setting: str, found: dict[str, float]
) -> None:
    text = BARE.replace("epochs = 1", f"optimizer = {written}")
    arguments = resolve_recipe(override_recipe(parse(text), [setting], None)).optimizer.arguments
    assert {name: arguments[name] for name in found} == found


def test_a_path_written_by_its_position_is_replaced() -> None:
    text = BARE.replace("digits", 'folder("old")')
    recipe = resolve_recipe(override_recipe(parse(text), ['data.source.path="new"'], None))
    assert recipe.data.source is not None
    assert recipe.data.source.arguments["path"] == "new"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("beta1", "optimizer.beta1"),
        ("b.lr", "optimizer.lr"),
        ("b.epochs", "epochs"),
        ("b.epoch", "epochs"),
        ("train.b.lr", "optimizer.lr"),
        ("train.b.epoch", "epochs"),
        ("train.b.optimizer.lrr", "optimizer.lr"),
    ],
)
def test_a_suggested_key_names_the_section_of_its_recipe(key: str, meant: str) -> None:
    text = BARE + "train b { optimizer = adam(beta1=0.8) }\n"
    with pytest.raises(NetError) as e:
        override_recipe(parse(text), [f"{key}=0.1"], None)
    assert e.value.diagnostics[0].help == f"did you mean `train.b.{meant}`?"


@pytest.mark.parametrize(
    ("setting", "help"),
    [
        ("train.epochs=", "write `--set train.epochs=5`"),
        ("train.epochs=abc", "no variable is called `abc` here"),
        ("data.batch=None", "leave `batch` out for its default, 64"),
        ("data.source.path=new", """write `--set 'data.source.path="new"'`"""),
    ],
)
def test_a_value_that_cannot_be_set_is_explained(setting: str, help: str) -> None:
    text = BARE.replace("digits", 'folder("old")')
    with pytest.raises(NetError) as e:
        resolve_recipe(override_recipe(parse(text), [setting], None))
    assert e.value.diagnostics[0].help == help


@pytest.mark.parametrize(
    ("option", "text"), [("--set", "train.wigets=3"), ("--vary", "train.wigets=[3, 4]")]
)
def test_an_unknown_key_is_underlined(option: str, text: str) -> None:
    setting = parse_setting(text, option)
    if isinstance(setting.value, ListLiteral):
        setting = Setting(setting.key, setting.value.items[0])
    with pytest.raises(NetError) as e:
        resolve_recipe(override_recipe(parse(BARE), [setting], None))
    span = e.value.diagnostics[0].span
    assert span is not None
    assert span.text == "train.wigets"


def test_every_key_of_a_section_is_known() -> None:
    for signature in (TRAIN_SIGNATURE, DATA_SIGNATURE):
        for param in signature.params:
            assert f"{signature.name}.{param.name}" in SECTION_KEYS.names


@pytest.mark.parametrize(
    ("setting", "help"),
    [
        ("train.lr=0.1", "did you mean `train.optimizer.lr`?"),
        ("train.batch_size=4", "did you mean `data.batch`?"),
        ("data.epochs=4", "did you mean `train.epochs`?"),
        ("train.warmup=4", "did you mean `train.schedule.warmup`?"),
        ("train.optimizr.lr=4", "did you mean `train.optimizer.lr`?"),
        ("optimizer.lr=0.1", "did you mean `train.optimizer.lr`?"),
        ("optimizer=adam", "`optimizer` is a key of the train section: `train.optimizer`"),
        ("learning-rate=4", "did you mean `train.optimizer.lr`?"),
        ("batch=4", "`batch` is a key of the data section: `data.batch`"),
        ("train.epoch=3", "did you mean `train.epochs`?"),
        ("train.epcohs=3", "did you mean `train.epochs`?"),
        ("data.path=3", "did you mean `data.source.path`?"),
        ("trian.epochs=3", "did you mean `train.epochs`?"),
        ("data=mnist", "did you mean `data.source`?"),
        ("train=b", "`netdsl train FILE:NAME` chooses a recipe"),
        ("nothing=3", "settings are: data.KEY, train.KEY"),
    ],
)
@pytest.mark.parametrize("kind", [str, PythonSetting])
def test_a_wrong_key_leads_to_the_right_one(setting: str, help: str, kind: type[str]) -> None:
    with pytest.raises(NetError) as e:
        override_recipe(parse(BARE), [kind(setting)], None)
    assert help in str(e.value)
    assert setting.partition("=")[0] in e.value.message


@pytest.mark.parametrize(
    ("text", "place", "lines"),
    [
        (BARE.replace("train {", "train a {") + "train b { epochs = 2 }\n", "", ["train a"]),
        (BARE.replace("train {", "train a {") + "train b { epochs = 2 }\n", ":b", []),
        (BARE.replace("data {", "data a {") + "data b { source = mnist }\n", "", ["data a"]),
        (NAMED, "", []),
        (BARE, "", []),
    ],
)
def test_a_choice_among_named_sections_is_printed(
    netdsl: Any, tmp_path: Path, text: str, place: str, lines: list[str]
) -> None:
    (tmp_path / "f.net").write_text(text)
    code, _, err = netdsl("train", f"f.net{place}", "--dry-run")
    assert code == 0
    found = [x.partition("`, ")[0] for x in err.splitlines() if x.startswith("uses ")]
    assert found == [f"uses `{line}" for line in lines]
