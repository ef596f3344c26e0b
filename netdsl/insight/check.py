"""Checking a whole program: every net both ways, every section, every test's questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from netdsl.errors import Diagnostic, NetError
from netdsl.insight.expectations import check_test
from netdsl.language.budget import Budget, Errors
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program
from netdsl.train.fit import check_recipe
from netdsl.train.lints import Subject, warnings
from netdsl.train.recipe import check_sections, resolve


def check_program(program: Program, name: str | None = None) -> tuple[list[str], list[Diagnostic]]:
    """The nets that were checked and what lints warn of. Raises NetError with all that is wrong.

    Each net (or only `name`) is elaborated for evaluation and for training.
    """
    budget, errors = Budget(), Errors()
    nets = [program.net(name)] if name else [n for n in program.nets if program.complete(n)]
    subjects: list[Subject] = []

    def check_net(net: str) -> None:
        elaborate(program, net, Settings(batch=2), budget)
        trained = elaborate(program, net, Settings(batch=2, training=True), budget)
        subjects.append(Subject(program, trained))

    def check_training(recipe: str | None) -> None:
        network = check_recipe(program, recipe, budget)
        subjects.append(Subject(program, network, resolve(program, recipe, budget)))

    jobs: list[Callable[[], None]] = [partial(check_sections, program, budget)]
    jobs += [partial(check_net, net) for net in nets]
    if name is None:
        jobs += [partial(check_training, x.name) for x in program.sections("train")]
    tests = (t for t in program.tests if name is None or t.net == name)
    jobs += [partial(check_test, program, test, budget) for test in tests]
    for job in jobs:
        try:
            job()
        except NetError as e:
            errors.collect(e)
    errors.check()
    return nets, warnings(subjects)
