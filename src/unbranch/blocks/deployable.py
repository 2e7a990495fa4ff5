"""``switch_to_deploy()`` for a block, for a container of blocks, for a whole model."""

import logging

import torch
from torch import nn

from unbranch.affine import NotLinear

log = logging.getLogger(__name__)


class Deployable:
    """Mixin: ``switch_to_deploy()`` turns every block inside this module into its deploy form, in place.

    >>> class C3(Deployable, nn.Module): ...

    A class with a part of its own to replace overrides ``deploy_children``; everything else is inherited.
    """

    def deploy_children(self) -> dict[str, nn.Module]:
        """What takes the place of this module's own children, by name; empty where nothing is left to do.

        Computes and returns; changes nothing. Raises ValueError where the deploy form does not exist as
        things stand.
        """
        return {}

    def deployed_form(self) -> nn.Module | None:
        """What stands in this module's own place once it is in deploy form; None where the module itself does."""
        return None

    def switch_to_deploy(self) -> None:
        """Fold each block inside, this module included, to its one convolution: same outputs in eval mode.

        In place; classes, hooks and attributes of all containers stay, hooks on a branch go with the branch.
        Parts in deploy form already are left alone, so a second call does nothing. All or nothing: every
        convolution is computed before the first one is placed. Safe inside a loop over ``model.modules()``.
        There is no way back to the branches: keep a copy to train on.

        Raises ValueError in training mode and under autocast, NotLinear (a ValueError) for branches that are
        no convolution, TypeError on what is no ``nn.Module``.
        """
        if not isinstance(self, nn.Module):
            raise TypeError(f"Deployable is a mixin for nn.Module, which {type(self).__name__} is not")
        placed = [
            (module, name, child)
            for path, module in self.named_modules()
            for name, child in _children_of(path, module).items()
        ]
        for parent, name, child in placed:
            setattr(parent, name, child)
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                form = child.deployed_form() if isinstance(child, Deployable) else None
                if form is not None:
                    setattr(parent, name, form)
        if placed:
            log.info("%s: %d parts switched to deploy form", type(self).__name__, len(placed))
        else:
            log.info("%s: nothing to switch, no part is in training form", type(self).__name__)


def _children_of(path: str, module: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(module, Deployable):
        return {}
    where = f"{path} ({type(module).__name__})" if path else type(module).__name__
    try:
        # Inside inference mode too the parameters must be ones that can be trained later.
        with torch.inference_mode(False):
            return module.deploy_children()
    except NotLinear as error:
        raise NotLinear(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
