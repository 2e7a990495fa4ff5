"""Schedule, average and anchors: pure functions of what they are given."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from unbranch.detect.anchors import choose_anchors, fit
from unbranch.detect.ema import Average
from unbranch.detect.errors import InputError
from unbranch.detect.recipe import Recipe
from unbranch.detect.schedule import Plan, make_optimizer, set_rates

LONG = Plan(steps=1000, epochs=300, batch=16, recipe=Recipe())
SHORT = Plan(steps=13, epochs=12, batch=16, recipe=Recipe())


def test_long_trainings_accumulate_to_64_with_sgd_short_ones_step_with_adamw() -> None:
    assert (LONG.optimizer, LONG.nominal, LONG.at(10**5).accumulate) == ("sgd", 64, 4)
    assert (SHORT.optimizer, SHORT.nominal, SHORT.at(100).accumulate) == ("adamw", 16, 1)


def test_a_batch_above_the_nominal_one_steps_each_time_and_decays_more() -> None:
    plan = Plan(1000, 300, 128, Recipe(optimizer="sgd"))
    assert plan.at(10**5).accumulate == 1
    assert plan.weight_decay == pytest.approx(2 * Recipe().weight_decay)


def test_rates_warm_up_and_fall_as_a_cosine() -> None:
    first, warm, last = LONG.at(0), LONG.at(3000), LONG.at(300_000 - 1)
    assert (first.lr, first.bias_lr, first.momentum, first.accumulate) == (0, 0.1, 0.8, 1)
    assert warm.lr == warm.bias_lr == pytest.approx(0.01, rel=1e-3)
    assert warm.momentum == 0.937
    assert last.lr == pytest.approx(1e-4, rel=1e-3)
    half = LONG.at(150_000).lr
    assert half == pytest.approx(0.01 * (0.01 + 0.99 / 2), rel=1e-6)
    rates = [LONG.at(step).lr for step in range(3000, 300_000, 500)]
    assert rates == sorted(rates, reverse=True)


def test_warm_up_is_a_fifth_of_a_short_training_at_most() -> None:
    assert Plan(10, 5, 16, Recipe()).warmup == 10
    assert Plan(10, 100, 16, Recipe()).warmup == 30


def test_mosaic_ends_before_training_does() -> None:
    assert Plan(10, 100, 16, Recipe(mosaic_off=0.2)).plain_from == 80
    assert Plan(10, 100, 16, Recipe(mosaic_off=0.0)).plain_from == 100


def test_few_steps_are_longer_and_trained_weights_take_short_ones() -> None:
    assert SHORT.lr == pytest.approx(0.008)
    assert Plan(25, 100, 16, Recipe()).lr == pytest.approx(0.004)
    assert replace(SHORT, fresh=False).lr == 0.001
    assert replace(SHORT, recipe=Recipe(lr=0.5)).lr == 0.5


def test_only_weights_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = make_optimizer(network, LONG)
    groups = {group["kind"]: group for group in optimizer.param_groups}
    assert {kind: len(group["params"]) for kind, group in groups.items()} == {
        "weights": 2,
        "norms": 1,
        "biases": 3,
    }
    assert {kind: group["weight_decay"] for kind, group in groups.items()} == {
        "weights": pytest.approx(5e-4), "norms": 0.0, "biases": 0.0,
    }  # fmt: skip
    set_rates(optimizer, LONG.at(0))
    assert groups["biases"]["lr"] == 0.1
    assert groups["weights"]["lr"] == 0


def test_average_follows_its_formula(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average = Average(network, decay=0.9, ramp=5.0)
    wanted = {name: value.clone() for name, value in network.state_dict().items()}
    for update in range(1, 8):
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
            else:
                value.add_(1)
        average.update(network)
        d = 0.9 * (1 - np.exp(-update / 5))
        for name, value in network.state_dict().items():
            wanted[name] = d * wanted[name] + (1 - d) * value if value.is_floating_point() else value
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10)


def test_average_needs_no_gradient_and_stays_in_eval_mode() -> None:
    average = Average(nn.BatchNorm1d(2))
    average.train()
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_average_goes_on_from_its_state() -> None:
    network = nn.Linear(2, 2)
    first = Average(network, ramp=10.0)
    first.update(network)
    second = Average(nn.Linear(2, 2), ramp=10.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    nn.init.zeros_(network.weight)
    assert torch.equal(first.update(network).network.weight, second.update(network).network.weight)


ANCHORS = torch.tensor([[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]])


def test_anchors_that_fit_are_kept() -> None:
    sides = np.random.default_rng(0).uniform(8, 80, (200, 2))
    choice = choose_anchors(sides, ANCHORS, 4.0, 0)
    assert not choice.changed
    assert choice.anchors is ANCHORS
    assert choice.before.reach > 0.98


@pytest.mark.parametrize("low, high", [(200.0, 400.0), (1.0, 4.0)])  # noqa: PT006
def test_anchors_that_do_not_fit_are_computed_anew(low: float, high: float) -> None:
    sides = np.random.default_rng(0).uniform(low, high, (300, 2))
    choice = choose_anchors(sides, ANCHORS, 4.0, 0)
    assert choice.changed
    assert choice.before.reach < 0.7
    assert choice.after.reach > 0.98
    assert choice.after.score > choice.before.score
    areas = choice.anchors.prod(-1).flatten()
    assert torch.equal(areas, areas.sort().values)
    assert torch.equal(choice.anchors, choose_anchors(sides, ANCHORS, 4.0, 0).anchors)
    assert not torch.equal(choice.anchors, choose_anchors(sides, ANCHORS, 4.0, 1).anchors)


def test_new_anchors_find_the_clusters() -> None:
    draw = np.random.default_rng(1)
    middles = np.array([[4.0, 100.0], [100.0, 4.0], [9.0, 9.0], [300.0, 300.0]])
    sides = (middles[draw.integers(0, 4, 400)] * draw.uniform(0.95, 1.05, (400, 2))).astype(np.float64)
    found = choose_anchors(sides, ANCHORS, 4.0, 0).anchors.reshape(-1, 2).double().numpy()
    assert fit(sides, found, 4.0).score > 0.95


def test_too_few_boxes_keep_the_anchors() -> None:
    assert not choose_anchors(np.array([[500.0, 500.0]]), ANCHORS, 4.0, 0).changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mosaic": 1.5}, "mosaic is 1.5; give a fraction"),
        ({"scale": 1.0}, "scale is 1.0; give less than 1"),
        ({"anchor_threshold": 1.0}, "give a ratio above 1"),
        ({"hue_shift": 1.0}, "no setting 'hue_shift'"),
        ({"lr": "fast"}, "lr is 'fast'; give a number, 0 or more"),
        ({"lr": -1.0}, "lr is -1.0; give a number, 0 or more"),
        ({"box": None}, "box is None; give a number"),
        ({"box": True}, "box is True; give a number"),
        ({"clip": float("nan")}, "clip is nan; give a number"),
        ({"balance": [1.0, "b"]}, "balance is .*; give numbers"),
        ({"balance": "4 1"}, "balance is '4 1'; give numbers"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it can be auto, sgd, adamw"),
        ({"nominal_batch": 0}, "nominal_batch is 0; give more"),
        ({"ema_ramp": 0.0}, "ema_ramp is 0; give more"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_mapping(values)
