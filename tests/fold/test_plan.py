"""The plan: never more work than before, each op once, and what is left alone is said."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import x_of
from tests.graphs import random_network
from unbranch.affine import ELEMENT, Affine, cost, multiply_adds
from unbranch.fold.interpret import interpret
from unbranch.fold.plan import Plan, WorkCosts, plan
from unbranch.frontends.modules import record
from unbranch.frontends.padding import padding_work


def planned(model: nn.Module, x: Tensor) -> tuple[Plan, WorkCosts]:
    recording = record(model.eval(), (x,))
    costs = WorkCosts(recording.graph)
    return plan(interpret(recording.graph), costs, lambda regions: {}), costs


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_no_plan_does_more_work_or_reads_what_it_removed(start: int) -> None:
    regions = 0
    for seed in range(start, start + 20):
        model, x = random_network(seed, rank=1 + seed % 3, depth=8)
        chosen, costs = planned(model, x)
        graph = costs.graph
        taken: set[int] = set()
        for fact in chosen.regions:
            regions += 1
            before = sum(costs.node(graph.nodes[i]) for i in fact.members)
            assert costs.region(fact) <= before
            assert not fact.members & taken, "an op belongs to two regions"
            taken |= fact.members
            inside = {o for i in fact.members for o in graph.nodes[i].outputs} - {fact.value}
            assert not inside & graph.kept
            for value in inside:
                assert set(graph.readers.get(value, ())) <= fact.members
    assert regions >= 20


@pytest.mark.parametrize(
    ("layers", "regions", "reason"),
    [
        ([nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 1)], 0, "more work"),
        ([nn.Conv2d(4, 64, 1), nn.Conv2d(64, 4, 1)], 1, ""),
        ([nn.Conv2d(32, 32, 3, groups=32, bias=False), nn.Conv2d(32, 32, 1)], 0, "more work"),
        ([nn.Conv2d(32, 32, 3, bias=False), nn.Conv2d(32, 32, 3)], 0, "more work"),
        ([nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)], 1, ""),
        ([nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)], 0, ""),
    ],
)
def test_what_pays_and_what_does_not(layers: list[nn.Module], regions: int, reason: str) -> None:
    first = layers[0]
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 8
    chosen, _ = planned(nn.Sequential(*layers), x_of(1, channels, 20, 20).float())
    assert len(chosen.regions) == regions
    if reason:
        assert any(reason in why for _, why in chosen.left)


def test_a_barred_region_gives_up_one_op_and_is_tried_again() -> None:
    """conv + norm + scale, where the whole may not be placed: two of the three still fold."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)).eval()
    recording = record(model, (torch.zeros(1, 8, 9, 9),))
    known, costs = interpret(recording.graph), WorkCosts(recording.graph)
    whole = plan(known, costs, lambda regions: {}).regions
    assert [len(fact.members) for fact in whole] == [3]

    def check(regions: object) -> dict[int, str]:
        assert isinstance(regions, list | tuple)
        return {id(fact): "not here" for fact in regions if len(fact.members) == 3}

    fewer = plan(known, costs, check)
    assert [len(fact.members) for fact in fewer.regions] == [2]


def test_work_is_multiply_adds_and_elements_moved() -> None:
    conv = Affine(torch.zeros(2, 6, 4, 3, 5), None, (2, 1), ((1, 1), (2, 2)), (1, 1))
    assert multiply_adds(conv.geometry, (10, 20)) == 12 * 4 * 15 * 200
    assert cost(conv, (10, 20)) == 12 * 4 * 15 * 200 + ELEMENT * (8 * 400 + 12 * 200)
    turned = Affine(torch.zeros(1, 6, 4, 2, 2), None, (2, 2), ((0, 0), (0, 0)), (1, 1), transposed=True)
    assert multiply_adds(turned.geometry, (10, 20)) == 6 * 4 * 4 * 50
    assert cost(turned, (10, 20)) == 6 * 4 * 4 * 50 + ELEMENT * (4 * 50 + 6 * 200)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_a_padding_beside_a_convolution_costs_what_one_that_stands_there_costs(mode: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (2, 1, 0, 3), mode=mode))

    graph = record(Net().double().eval(), (x_of(2, 4, 9, 8),)).graph
    (fact,) = interpret(graph).of(graph.nodes[-1].outputs[0], graph.nodes[0].inputs[0])
    assert padding_work(graph, fact) == WorkCosts(graph).node(graph.nodes[0])
