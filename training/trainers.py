"""The frameworks whose networks can be trained: a modeler and a runner each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ..errors import UsageError
from .modeler import Modeler
from .runner import Runner


@dataclass(frozen=True)
class Trainer:
    """What trains the networks of a framework; each is ``module:class`` of this folder.

    Attributes:
        modeler: a :class:`Modeler`. It is made with ``network``, ``forward_pass``, ``loss``,
            ``evaluation``, ``device``, ``precision``, ``channels_last`` and ``source`` (where the
            network comes from), those that it takes.
        runner: a :class:`Runner`, with the arguments of that class.
    """

    modeler: str
    runner: str


TRAINERS: dict[str, Trainer] = {
    "keras": Trainer("keras_modeler:KerasModeler", "keras_runner:KerasRunner"),
    "torch": Trainer("torch_modeler:TorchModeler", "torch_runner:TorchRunner"),
}
"""By ``model.framework``. A framework of a module of its own is one line."""


def trainer_of(framework: str, label: str) -> tuple[type[Modeler], type[Runner]]:
    """Return the classes of a framework.

    Raises:
        UsageError: its networks cannot be trained.
    """
    found = TRAINERS.get(framework)
    if found is None:
        raise UsageError(
            f"{label}: model.framework: found {framework!r}; expected one that can be trained:"
            f" {', '.join(TRAINERS)}"
        )
    return _attribute(found.modeler), _attribute(found.runner)


def _attribute(name: str) -> type:
    module, _, attribute = name.partition(":")
    # A module of another package is named in full.
    path = module if "." in module else f".{module}"
    found: type = getattr(import_module(path, __package__), attribute)
    return found
