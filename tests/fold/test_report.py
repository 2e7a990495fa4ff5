"""The report: what a person and a machine read of a fold."""

import json

from torch import nn

from tests.frontends.modules.checks import conv_norm, drawn, x_of
from unbranch import explain, reparameterize


def test_a_report_counts_what_there_was_and_what_is_left() -> None:
    model = drawn(
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    _, report = reparameterize(model, x_of(1, 4, 9, 9), return_report=True)
    conv, norm, last = 4 * 6 * 9 * 81, 6 * 81, 6 * 2 * 81
    assert (report.before.ops, report.after.ops) == (4, 3)
    assert report.before.multiply_adds == conv + norm + last
    assert report.after.multiply_adds == conv + last
    assert report.before.parameters == 4 * 6 * 9 + 6 + 12 + 12 + 2
    assert report.after.parameters == 4 * 6 * 9 + 6 + 12 + 2
    (place,) = report.folded
    assert (place.place, place.how, place.becomes) == ("0", "chain", "conv 3x3 4->6")
    assert (place.before.ops, place.after.ops) == (2, 1)


def test_the_totals_after_are_those_of_the_folded_model() -> None:
    model = drawn(
        nn.Sequential(conv_norm(), nn.ReLU(), conv_norm(4, 6, 5, stride=2), nn.ReLU(), conv_norm(6, 6, 1))
    )
    folded, report = reparameterize(model, x_of(1, 4, 9, 9), return_report=True)
    again = explain(folded, x_of(1, 4, 9, 9))
    assert again.before == report.after
    assert sum(p.numel() for p in folded.parameters()) == report.after.parameters


def test_a_report_is_text_for_people_and_plain_data_for_machines() -> None:
    model = drawn(
        nn.Sequential(conv_norm(4, 64), nn.ReLU(), nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 1), nn.ReLU())
    )
    report = explain(model, x_of(1, 4, 9, 9))
    lines = str(report).splitlines()
    assert lines[0].startswith("would fold 1 place: ops 6 -> 5, multiply-adds ")
    assert "(-2 %)" in lines[0]
    assert lines[1] == "  0.0: 2 ops -> conv 3x3 4->64 (chain)"
    assert lines[2] == "left alone, 1:"
    assert "more work" in lines[3]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["applied"] is False
    assert data["before"]["ops"] == 6
    assert data["folded"][0]["becomes"] == "conv 3x3 4->64"
    assert data["refused"][0]["reason"] in lines[3]
