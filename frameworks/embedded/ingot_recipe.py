"""Gives the layers of a freshly built PyTorch module the sizes of a pruned one.

Copied into packages beside ingot_entry.py, so it imports nothing of Ingot's. A recipe is a dict of
JSON values: ``layers`` (path to new sizes), ``tensors`` (path of a bare parameter or buffer to the
indices that are left), ``attributes`` (path of a module to numbers that follow), and ``groups``
(for the record). What does not fit raises ValueError.
"""

VERSION = 1
SECTIONS = ("layers", "tensors", "attributes", "groups")


def apply_recipe(module, recipe):
    """Resize a module in place; the values that its layers keep are those of the first channels.

    The weights that belong to the recipe are to be loaded afterwards. Only what no file of weights
    holds (a buffer that is not persistent) keeps the very values that the recipe names.
    """
    if recipe.get("version") != VERSION:
        raise ValueError(f"found version {recipe.get('version')!r}; expected {VERSION}")
    unknown = sorted(set(recipe) - {"version", *SECTIONS})
    if unknown:
        raise ValueError(f"found the unknown key {unknown[0]!r}; expected {', '.join(SECTIONS)}")
    for name in SECTIONS:
        section = recipe.get(name, {})
        if not isinstance(section, dict) or not all(isinstance(v, dict) for v in section.values()):
            raise ValueError(f"{name}: expected a mapping of names to mappings")
    _apply(module, recipe, {})
    return module


def _apply(module, recipe, replaced):
    for path, sizes in recipe.get("layers", {}).items():
        layer = _find(module, path)
        try:
            _resize(layer, sizes, replaced)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            detail = str(error) or type(error).__name__
            raise ValueError(f"layer {path!r} ({type(layer).__name__}): {detail}") from error
    for path, entry in recipe.get("tensors", {}).items():
        owner, name = _owner(module, path)
        try:
            tensor = getattr(owner, name)
            kept = _index(tensor, entry["kept"])
            _assign(owner, name, tensor.detach().index_select(entry["dim"], kept), replaced)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"tensor {path!r}: {error}") from error
    _keep_tied(module, replaced)
    for path, values in recipe.get("attributes", {}).items():
        owner = _find(module, path)
        for name, value in values.items():
            if type(getattr(owner, name, None)) is not int or type(value) is not int:
                raise ValueError(f"{path!r} has no number {name!r}")
            setattr(owner, name, value)


def sizes_of(layer):
    """Return the sizes of a layer that a recipe may change, or None for one that it cannot."""
    from torch import nn

    norms = (nn.LayerNorm, nn.RMSNorm) if hasattr(nn, "RMSNorm") else (nn.LayerNorm,)
    known = (
        (nn.modules.conv._ConvNd, ("in_channels", "out_channels", "groups")),
        (nn.Linear, ("in_features", "out_features")),
        (nn.modules.batchnorm._NormBase, ("num_features",)),
        (norms, ("normalized_shape",)),
        (nn.GroupNorm, ("num_channels",)),
        (nn.PReLU, ("num_parameters",)),
        (nn.Embedding, ("embedding_dim",)),
        (nn.MultiheadAttention, ("embed_dim", "num_heads", "head_dim")),
    )
    for types, names in known:
        if isinstance(layer, types):
            values = {name: getattr(layer, name) for name in names}
            return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return None


def _resize(layer, sizes, replaced):
    current = sizes_of(layer)
    if current is None:
        raise ValueError("a layer of this type has no sizes that can change")
    if set(sizes) != set(current):
        raise ValueError(f"found the sizes {sorted(sizes)}; expected {sorted(current)}")
    for value in sizes.values():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(number) is int and number > 0 for number in values):
            raise ValueError(f"found the size {value!r}; expected a positive integer")
    for name, shape in _shapes(layer, sizes).items():
        owner, attribute = _owner(layer, name)
        tensor = getattr(owner, attribute)
        if tensor is None or tuple(tensor.shape) == tuple(shape):
            continue
        values = tensor.detach()
        for dim, size in enumerate(shape):
            if size > values.shape[dim]:
                raise ValueError(f"{name} has {list(tensor.shape)} values; expected {list(shape)}")
            values = values.narrow(dim, 0, size)
        _assign(owner, attribute, values.clone(), replaced)
    for name, value in sizes.items():
        setattr(layer, name, tuple(value) if isinstance(value, list) else value)
    if "embed_dim" in sizes:
        layer.kdim = layer.vdim = sizes["embed_dim"]
        layer.out_proj.in_features = layer.out_proj.out_features = sizes["embed_dim"]


def _shapes(layer, sizes):
    """Return the shapes of a layer's tensors, by name, for given sizes."""
    if "groups" in sizes:
        inputs, outputs, groups = sizes["in_channels"], sizes["out_channels"], sizes["groups"]
        if inputs % groups or outputs % groups:
            raise ValueError(f"{groups} groups do not divide {inputs} and {outputs} channels")
        pair = (inputs, outputs // groups) if layer.transposed else (outputs, inputs // groups)
        return {"weight": (*pair, *layer.weight.shape[2:]), "bias": (outputs,)}
    if "in_features" in sizes:
        outputs = sizes["out_features"]
        return {"weight": (outputs, sizes["in_features"]), "bias": (outputs,)}
    if "embedding_dim" in sizes:
        return {"weight": (layer.weight.shape[0], sizes["embedding_dim"])}
    if "embed_dim" in sizes:
        width = sizes["embed_dim"]
        if sizes["num_heads"] * sizes["head_dim"] != width:
            raise ValueError(f"{sizes['num_heads']} heads of {sizes['head_dim']} are not {width}")
        return {
            "in_proj_weight": (3 * width, width),
            "in_proj_bias": (3 * width,),
            "out_proj.weight": (width, width),
            "out_proj.bias": (width,),
            "bias_k": (1, 1, width),
            "bias_v": (1, 1, width),
        }
    if "num_parameters" in sizes:
        return {"weight": (sizes["num_parameters"],)}
    size = next(iter(sizes.values()))
    shape = tuple(size) if isinstance(size, list) else (size,)
    names = ("weight", "bias", "running_mean", "running_var")
    return {name: shape for name in names if getattr(layer, name, None) is not None}


def _find(module, path):
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the module has no layer {path!r}") from error


def _owner(module, path):
    prefix, _, name = path.rpartition(".")
    return _find(module, prefix), name


def _index(tensor, kept):
    import torch

    return torch.tensor(kept, dtype=torch.long, device=tensor.device)


def _assign(owner, name, values, replaced):
    from torch import nn

    old = getattr(owner, name)
    if not isinstance(old, nn.Parameter):
        owner._buffers[name] = values
        return
    new = replaced.get(id(old))
    if new is None or new[1].shape != values.shape:
        new = replaced[id(old)] = (old, nn.Parameter(values, old.requires_grad))
    owner._parameters[name] = new[1]


def _keep_tied(module, replaced):
    """Let every layer that shares a parameter with a resized one share the new parameter."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and id(parameter) in replaced:
                owner._parameters[name] = replaced[id(parameter)][1]
