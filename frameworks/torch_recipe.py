"""Channel recipes: what makes the user's own class as small as a pruned model.

A recipe is a mapping of JSON values (see :mod:`.embedded.ingot_recipe`, which also travels in
packages). It holds sizes and indices, no weights and no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .embedded import ingot_recipe

if TYPE_CHECKING:
    from torch import nn

VERSION = ingot_recipe.VERSION
sizes_of = ingot_recipe.sizes_of


def apply_recipe(module: nn.Module, recipe: Mapping[str, Any], label: str) -> nn.Module:
    """Resize the layers of a freshly built module in place, and return it.

    The weights that belong to the recipe are loaded afterwards, strictly.

    Raises:
        ModelError: the recipe is malformed, of another version, or one of another network.
    """
    if not hasattr(module, "get_submodule"):
        raise ModelError(
            f"{label}: the entry point returned a {type(module).__name__}; a channel recipe needs a"
            " torch.nn.Module"
        )
    try:
        ingot_recipe.apply_recipe(module, dict(recipe))
    except ValueError as error:
        raise ModelError(
            f"{label}: the channel recipe does not fit {type(module).__name__}: {error}",
            hint="it belongs to another network, or the code was changed since it was pruned",
        ) from error
    return module
