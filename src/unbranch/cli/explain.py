"""`unbranch explain`: what would fold, what would not, and why."""

from unbranch.cli.arguments import (
    BatchOption,
    CostOption,
    JsonOption,
    ModelArgument,
    OptionOption,
    RuntimeOption,
    SizeOption,
    TrustOption,
    WeightsOption,
    WhereOption,
    asked,
)
from unbranch.cli.console import out, out_json, working
from unbranch.cli.forms import open_network
from unbranch.report import report_tables


def command(  # noqa: PLR0913 - the options are the interface
    model: ModelArgument,
    weights: WeightsOption = None,
    input_size: SizeOption = None,
    batch: BatchOption = None,
    option: OptionOption = None,
    where: WhereOption = None,
    cost: CostOption = "work",
    runtime: RuntimeOption = None,
    trust: TrustOption = "witnessed",
    as_json: JsonOption = False,
) -> None:
    """Say which places would become one convolution, what that saves, and why the others would not."""
    with working(f"reading {model}"):
        network = open_network(asked(model, weights, option, input_size, batch))
    with working("planning"):
        report = network.explain({"where": where, "cost": cost, "runtime": runtime, "trust": trust})
    if as_json:
        out_json({"model": model, "report": report.to_dict(), "notes": list(network.notes)})
    else:
        out(*report_tables(report))
