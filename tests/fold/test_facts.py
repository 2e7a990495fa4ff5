"""The numbers of a fact: what several take is worked out once, and nothing is held that nobody takes again."""

import gc
import weakref
from collections.abc import Iterable
from dataclasses import replace

import torch

from unbranch.affine import Affine, add_geometry
from unbranch.fold.facts import Composing, Fact, Summing, identity_fact

CPU = torch.device("cpu")
START = identity_fact(0, (1, 4, 5, 5), 1)
TWICE = Affine.diagonal(torch.full((4,), 2.0, dtype=torch.float64))

MINUS_HALF = Affine.diagonal(torch.full((4,), -0.5, dtype=torch.float64))


def test_what_several_take_is_worked_out_once() -> None:
    calls = []

    def doubling(parts: Iterable[Affine]) -> Affine:
        calls.append(None)
        return Composing(TWICE)(parts)

    fact = START
    for depth in range(1, 13):
        shared = replace(fact, value=2 * depth, rule=doubling, parts=(fact,))
        both = Summing(add_geometry([shared.geometry] * 2), (None, MINUS_HALF))
        fact = replace(shared, value=2 * depth + 1, rule=both, parts=(shared, shared))
    assert torch.equal(fact.evaluate(CPU).weight, torch.ones(4, 1, 1, 1, 1, dtype=torch.float64))
    assert len(calls) == 12


def test_a_term_is_let_go_once_it_is_in_the_sum() -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def term(parts: Iterable[Affine]) -> Affine:
        gc.collect()
        alive.append(sum(weight() is not None for weight in made))
        scaled = Composing(TWICE)(parts)
        made.append(weakref.ref(scaled.weight))
        return scaled

    terms = tuple(Fact(i, 0, 1, START.geometry, START.shape, parts=(START,), rule=term) for i in range(1, 9))
    rule = Summing(add_geometry([t.geometry for t in terms]), (None,) * 8)
    total = replace(START, value=9, rule=rule, parts=terms).evaluate(CPU)
    assert torch.equal(total.weight, torch.full((4, 1, 1, 1, 1), 16.0, dtype=torch.float64))
    assert max(alive) <= 1
