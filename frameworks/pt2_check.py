"""What is checked of a torch.export archive before PyTorch opens it.

``torch.export.load`` (PyTorch 2.13) is no safe reader. Most of an archive is JSON and raw weights,
yet it runs what the file says:

- sample inputs go to ``torch.load``; when that fails, again with ``weights_only=False``;
- weights and constants marked ``use_pickle`` are unpickled, and so are opaque and TorchBind objects
  and the ``.pt`` files of archives of before PyTorch 2.8;
- sizes that are expressions go to ``sympy.sympify``, which is ``eval``;
- guards are Python source, and names of arguments become part of it: both are compiled and run;
- the types of nested inputs and outputs may name modules, which are imported;
- the target of a node is looked up as any attribute of ``torch``, though a verifier then refuses
  what is no operator;
- compiled archives (AOTInductor) hold native code.

Archives of ordinary models need none of this. The checks let through what ``torch.export.save``
writes of them, and nothing else.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ModelError

_NAME = re.compile(r"\w*", re.ASCII)
_PATH = re.compile(r"[\w.:/+\-]*", re.ASCII)
_KEY = re.compile(r"[\w.:/+\- (),*]*", re.ASCII)  # keys are looked up, never evaluated
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
_NAMESPACES = "aten|prim|prims|quantized|quantized_decomposed|higher_order|torchvision"
_TARGETS = re.compile(
    rf"torch\.ops\.(?P<space>{_NAMESPACES})\.(?!__|save\b|from_file\b|load\b)\w+(\.(?!__)\w+)?"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|index|inv|invert|le|lshift|lt|mod|mul|ne"
    r"|neg|not_|or_|pos|pow|rshift|sub|truediv|xor)"
    r"|math\.(?!_)\w+"
    r"|torch\._?sym_\w+",
    re.ASCII,
)
_CUSTOM_TARGET = re.compile(r"torch\.ops\.(?!__|load_library|import_module)\w+(\.(?!__)\w+){1,2}")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Min|Max|Abs|Mod|And|Or|Not|Xor|Eq|Ne|Lt|Le|Gt|Ge"
    "|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan|Piecewise"
    "|floor|ceiling|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt"
    "|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat"
    "|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|IsNonOverlappingAndDenseIndicator"
)
_SYMBOL = re.compile(r"z?[a-z]{1,3}\d+(_\d+)?|oo|int_oo|True|False", re.ASCII)
_EXPRESSIONS = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Tuple,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def check_archive(path: Path, label: str, torch: Any, custom_ops: bool) -> None:
    """Check that opening and running a torch.export archive runs no code that the file brings.

    Args:
        path: the archive.
        label: what to call it in messages.
        torch: the module; its own reader is asked, so that both see the same records.
        custom_ops: the user has named libraries of operators, which the program may call.

    Raises:
        ModelError: it is damaged, of another kind, or would run code.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
        reader = torch._C.PyTorchFileReader(str(path))
        records = reader.get_all_records()
    except Exception as error:
        raise ModelError(
            f"{label}: not a torch.export archive: it is no zip archive, or damaged"
        ) from error
    if "models/model.json" not in records:
        raise ModelError(
            f"{label}: not a torch.export archive: found no models/model.json",
            hint="write it anew: torch.export.save(torch.export.export(module, inputs), path)",
        )
    if "version" in listed or len(set(listed)) != len(listed):
        raise ModelError(f"{label}: found a record twice, or one of an old format")
    for name in records:
        if name.startswith("data/aotinductor/"):
            raise ModelError(f"{label}: found compiled code ({name}), which Ingot never loads")
        if re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
            raise ModelError(f"{label}: found {name}, a pickle of an archive of before PyTorch 2.8")

    def read(name: str) -> bytes:
        return bytes(reader.get_record(name))

    try:
        for name in records:
            if re.fullmatch(r"data/(weights|constants)/.*_config\.json", name):
                _check_payloads(json.loads(read(name)), name)
            elif name.startswith("models/"):
                _Program(custom_ops).check(json.loads(read(name)))
            elif name.startswith("data/sample_inputs/"):
                _check_samples(read(name), torch)
    except _Refused as error:
        raise ModelError(f"{label}: {error}, which Ingot never runs") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ModelError(f"{label}: a damaged torch.export archive: {name}") from error


class _Refused(Exception):
    """A part of an archive that would run code; the message says which."""


def _check_payloads(config: Any, name: str) -> None:
    for key, payload in config["config"].items():
        prefix = "weight_" if "/weights/" in name else "tensor_"
        is_raw = payload["use_pickle"] is False and payload["tensor_meta"] is not None
        if not is_raw or not re.fullmatch(rf"{prefix}\d+", payload["path_name"]):
            raise _Refused(f"found {key!r} ({payload['path_name']}) stored as a pickle")


def _check_samples(content: bytes, torch: Any) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise _Refused("found sample inputs that are a pickle with code") from error


class _Program:
    """Walks through the JSON of a program and looks at every string in it."""

    def __init__(self, custom_ops: bool) -> None:
        self._custom_ops = custom_ops
        self._rules: dict[str, Callable[[Any], None]] = {
            "target": self._target,
            "as_operator": self._target,
            "expr_str": _check_expression,
            "in_spec": lambda text: _check_tree(text, is_call=True),
            "out_spec": lambda text: _check_tree(text, is_call=False),
            "name": lambda text: _match(_NAME, text, "name"),
            "as_name": lambda text: _match(_NAME, text, "name"),
            "as_string": _check_text,
            "as_strings": _check_text,
            "metadata": _check_text,
        }

    def check(self, program: dict[str, Any]) -> None:
        """Check a program as it is in ``models/model.json``."""
        self._walk(program["graph_module"])
        for key in program.get("range_constraints", {}):
            _check_expression(key)
        # guards_code is source, too, but the adapter asks for a module without guards.

    def _walk(self, value: Any) -> None:
        if isinstance(value, dict):
            if value.get("custom_obj_values") or value.get("as_custom_obj"):
                raise _Refused("found an object of a class of its own")
            for key, item in value.items():
                if item is None:
                    continue
                rule = self._rules.get(key)
                _match(_KEY, key, "key")
                if key == "forward_arg_names":
                    for name in item:
                        _match(_NAME, name, "name")
                elif rule is not None and not (key == "name" and isinstance(item, dict)):
                    rule(item)
                else:
                    self._walk(item)
        elif isinstance(value, list):
            for item in value:
                self._walk(item)
        elif isinstance(value, str):
            _match(_PATH, value, "text")

    def _target(self, text: str) -> None:
        if _TARGETS.fullmatch(text):
            return
        if _CUSTOM_TARGET.fullmatch(text):
            if self._custom_ops:
                return
            raise ModelError(f"the program calls the custom operator {text}")
        raise _Refused(f"found the operation {text[:80]!r}")


def _match(pattern: re.Pattern[str], text: str, kind: str) -> None:
    if not pattern.fullmatch(text):
        raise _Refused(f"found the {kind} {text[:80]!r}")


def _check_text(value: Any) -> None:
    """Check text that is only shown, or becomes a literal."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, str) and _CONTROL.search(value):
        raise _Refused("found control characters in a text")


def _check_tree(text: str, is_call: bool) -> None:
    """Check how inputs or outputs are nested: contexts of other types may import modules.

    Args:
        text: JSON of a tree; empty when there is none.
        is_call: it is arguments and keyword arguments; the names of the latter become code.
    """

    def check(node: Any) -> None:
        if node["type"] not in _CONTAINERS:
            raise _Refused(f"found inputs or outputs in a {str(node['type'])[:80]}")
        keys = json.loads(node["context"]) if node["context"] else None
        # A dict would be taken for an enum, whose module is imported.
        if keys is not None and not (
            isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)
        ):
            raise _Refused("found inputs or outputs with keys that are no names")
        for child in node["children_spec"]:
            check(child)

    if not text:
        return
    root = json.loads(text)[1]
    check(root)
    if is_call and len(root["children_spec"]) == 2:
        for name in json.loads(root["children_spec"][1]["context"] or "null") or ():
            _match(_NAME, str(name), "name")


def _check_expression(text: str) -> None:
    """Check that an expression, which is evaluated, is arithmetic on symbols."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise _Refused(f"found the expression {text[:80]!r}") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        is_fine = isinstance(node, _EXPRESSIONS)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_fine = _SYMBOL.fullmatch(node.value) is not None
        elif isinstance(node, ast.Name):
            pattern = _FUNCTIONS if id(node) in called else _SYMBOL
            is_fine = pattern.fullmatch(node.id) is not None
        if not is_fine:
            raise _Refused(f"found the expression {text[:80]!r}")
