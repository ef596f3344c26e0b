"""Checks a whole program: every net in both modes, every section, every query of a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from netdsl.errors import Diagnostic, NetError
from netdsl.insight.net_tests import check_test
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors
from netdsl.language.definition_check import find_definition_errors
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program, check_lets
from netdsl.training.checks import check_recipe
from netdsl.training.recipe.lint import Review, Subject
from netdsl.training.recipe.lints import warnings
from netdsl.training.recipe.recipe import check_sections, resolve_recipe


def check_program(
    program: Program, name: str | None = None, is_changed: bool = False
) -> tuple[list[str], list[Diagnostic]]:
    """Returns the nets that were checked and the lint warnings. Raises NetError with all errors.

    Each net (or only `name`) is elaborated for evaluation and for training: as a test and a recipe
    use it, else on its own. `is_changed` says that settings override the file.
    """
    budget, errors = Budget(), Errors()
    nets = (
        [program.resolve_net_name(name)]
        if name
        else [n for n in program.nets if program.has_all_defaults(n)]
    )
    subjects: list[Subject] = []
    evaluated_nets: set[str] = set()

    def check_training_recipe(recipe: str | None) -> None:
        network = check_recipe(program, recipe, budget)
        subjects.append(Subject(program, network, resolve_recipe(program, recipe, budget)))

    def check_test_section(test: s.Test) -> None:
        evaluated_nets.add(check_test(program, test, budget).name)

    def check_net(net: str) -> None:
        if net not in evaluated_nets:
            elaborate(program, net, Settings(batch=2), budget)
        if not any(x.network.name == net and x.is_whole for x in subjects):
            training_network = elaborate(program, net, Settings(batch=2, training=True), budget)
            subjects.append(Subject(program, training_network))

    recipes = [x.name for x in program.sections("train")] if name is None else []
    tests = [t for t in program.tests if name is None or t.net == name]
    jobs: list[Callable[[], None]] = [
        partial(check_lets, program, budget),
        partial(check_sections, program, budget),
        *(partial(check_training_recipe, recipe) for recipe in recipes),
        *(partial(check_test_section, test) for test in tests),
        *(partial(check_net, net) for net in nets),
    ]
    for job in jobs:
        try:
            job()
        except NetError as e:
            errors.collect(e)
    known_places = {
        (d.span.source.name, d.span.start) for d in errors.sorted_diagnostics() if d.span
    }
    for d in find_definition_errors(program):
        if d.span and (d.span.source.name, d.span.start) not in known_places:
            errors.add(d)
    errors.raise_if_any()
    is_whole = name is None and not is_changed
    used_nets = {*evaluated_nets, *(x.network.name for x in subjects)}.difference(nets)
    return [*nets, *sorted(used_nets)], warnings(Review(program, tuple(subjects), is_whole))
