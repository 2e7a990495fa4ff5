"""What a module does beside its part of a region: calls before it and calls after it, one after the other, and nothing else."""

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.frontends.modules.frames import Frame
from unbranch.frontends.modules.recording import Recording


def remainder(frame: Frame, fact: Fact, recording: Recording) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
    """The calls of a chain before and after the region's part in ``frame``, whose forward does nothing else.

    Raises:
        NotLinear: it does.
    """
    name = frame.path or "the root module"
    if not frame.simple or len(frame.inputs) != 1 or len(frame.outputs) != 1:
        raise NotLinear(f"{name} has more than one input or output")
    before: list[Frame] = []
    after: list[Frame] = []
    entered = False
    inside: list[int] = []
    for event in frame.events:
        nodes = [
            n for n in ([event] if isinstance(event, int) else event.nodes) if n not in recording.graph.unread
        ]
        if isinstance(event, int) and not nodes:
            continue
        mine = [node for node in nodes if node in fact.members]
        if isinstance(event, Frame) and not nodes:
            if event.inputs != event.outputs:
                raise NotLinear(f"{event.path} makes a value that was not recorded")
        elif len(mine) == len(nodes):
            if after:
                raise NotLinear(f"{name} leaves the region and enters it again")
            entered = True
            inside += mine
        elif mine or isinstance(event, int):
            spelling = recording.graph.nodes[nodes[0]].spelling
            raise NotLinear(f"{name} computes more in its own forward ({spelling})")
        else:
            (after if entered else before).append(event)
    _check_links(frame, before, after, inside, recording)
    return tuple(before), tuple(after)


def _check_links(
    frame: Frame, before: list[Frame], after: list[Frame], inside: list[int], recording: Recording
) -> None:
    """Each call takes what the one before it gave; the region's part takes and gives the rest."""
    nodes = recording.graph.nodes
    produced = {output for node in inside for output in nodes[node].outputs}
    entries = {value for node in inside for value in nodes[node].inputs} - produced
    current = frame.inputs[0]
    for call in before:
        if not call.simple or call.inputs != (current,):
            raise NotLinear(f"{frame.path} does not run its modules one after the other")
        current = call.outputs[0]
    if entries != {current}:
        raise NotLinear(f"{frame.path or 'the root module'} reads another value too")
    exits = [call.inputs[0] for call in after if call.simple] or [frame.outputs[0]]
    if exits[0] not in produced:
        raise NotLinear(f"{frame.path or 'the root module'} returns another value")
    current = exits[0]
    for call in after:
        if not call.simple or call.inputs != (current,):
            raise NotLinear(f"{frame.path} does not run its modules one after the other")
        current = call.outputs[0]
    if frame.outputs[0] != current:
        raise NotLinear(f"{frame.path or 'the root module'} returns another value")
