"""Checking a whole program: every net both ways, every section, every test's questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from netdsl.errors import Diagnostic, NetError
from netdsl.insight.expectations import check_test
from netdsl.language.budget import Budget, Errors
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.train.fit import check_recipe
from netdsl.train.recipe import check_sections


def check_program(program: Program, name: str | None = None) -> tuple[list[str], list[Diagnostic]]:
    """The nets that were checked and the warnings. Raises NetError with all that is wrong.

    Each net (or only `name`) is elaborated for evaluation and for training.
    """
    budget, errors = Budget(), Errors()
    nets = [program.net(name)] if name else [n for n in program.nets if program.complete(n)]
    jobs: list[Callable[[], Network | None]] = [partial(check_sections, program, budget)]
    for net in nets:
        for training in (False, True):
            settings = Settings(batch=2, training=training)
            jobs.append(partial(elaborate, program, net, settings, budget))
    if name is None:
        recipes = [section.name for section in program.sections("train")]
        jobs += [partial(check_recipe, program, recipe, budget) for recipe in recipes]
    tests = (t for t in program.tests if name is None or t.net == name)
    jobs += [partial(check_test, program, test, budget) for test in tests]
    warnings: dict[str, Diagnostic] = {}
    for job in jobs:
        try:
            network = job()
        except NetError as e:
            errors.collect(e)
        else:
            warnings |= {w.message: w for w in network.warnings} if network else {}
    errors.check()
    return nets, list(warnings.values())
