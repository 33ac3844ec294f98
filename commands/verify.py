"""``verify``: prove that a package is whole, computes what it did, and keeps its promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    CheckError,
    IngotError,
    MissingDependencyError,
    ModelError,
    PackageError,
    UntrustedCodeError,
    UsageError,
)

if TYPE_CHECKING:
    from ..runtime.package import Package
    from ..specs import ModelSpec
    from .verify_delta import DeltaMeasured, Promise

PASS, FAIL, SKIP = "pass", "fail", "skip"


@dataclass(frozen=True)
class Check:
    """One named check.

    Attributes:
        name: ``archive``, ``config``, ``layout``, ``hashes``, ``golden`` or ``delta``.
        status: ``pass``, ``fail`` or ``skip``.
        message: what was found, in one line.
        exit_code: what the command exits with because of this check; 0 when it does not matter.
        details: every problem that was found, where there may be several.
    """

    name: str
    status: str
    message: str
    exit_code: int = 0
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyResult:
    """The checks of one package, in the order in which they ran.

    Attributes:
        path: of the package.
        checks: each of them.
        delta: what was measured for the check ``delta``; None where that was not run.
    """

    path: Path
    checks: tuple[Check, ...]
    delta: DeltaMeasured | None = None

    @property
    def exit_code(self) -> int:
        """0 when every check that applies passed; else the code of the first that did not."""
        return next((check.exit_code for check in self.checks if check.exit_code), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        document = {
            "path": str(self.path.absolute()),
            "passed": self.exit_code == 0,
            "checks": [asdict(check) for check in self.checks],
        }
        if any(check.name == "delta" for check in self.checks):
            document["delta"] = None if self.delta is None else self.delta.to_dict()
        return document


def verify(
    package: str | Path,
    *,
    golden: bool = True,
    trust_code: bool = False,
    ignore_lock: bool = False,
    spec: str | Path | ModelSpec | None = None,
    delta: float | None = None,
    eval_split: str | None = None,
    reference: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> VerifyResult:
    """Check a package: its archive, configuration, layout, hashes and golden data.

    With a spec, its metric is measured again, beside that of the spec's model, on the spec's data.

    Args:
        package: a package; with ``spec`` also a model file of any format that Ingot runs, or
            another spec: then the metric is all that is checked.
        golden: run the golden data, in a fresh process.
        trust_code: the package may run code that it carries.
        ignore_lock: run even if locked requirements differ from what is installed.
        spec: names data, evaluation and the model that was given.
        delta: by how much the metric may drop; ``optimization.delta`` of the spec by default.
        eval_split: ``evaluation.eval_split`` of the spec by default.
        reference: a file that is measured in place of the spec's own network.
        overrides: ``key.path=value`` changes of the spec.
        progress: called with the bytes hashed so far, and all bytes.

    Returns:
        every check; a failed check is a result, no exception.

    Raises:
        UsageError: an option is impossible, or belongs to a spec that is not given.
        SpecError: the spec is invalid, or lacks data or evaluation.
        ModelError: the path is no package (with a spec: no model); a model cannot be measured.
        InputError: the data does not fit a model.
        PackageError: the archive or its metadata is malformed or unsafe, so that nothing else can
            be checked.
    """
    from ..runtime.detect import detect, expand
    from .verify_delta import settle_promise

    promise = None
    if spec is not None:
        promise = settle_promise(spec, delta, eval_split, reference, overrides)
    elif delta is not None or eval_split is not None or reference is not None or overrides:
        raise UsageError("found options of a measurement without its spec; expected spec=...")
    path = expand(package)
    kind = detect(path)
    checks: list[Check] = []
    if kind == "package":
        checks = _package_checks(path, golden, trust_code, ignore_lock, progress)
    elif promise is None:
        found = "spec file" if kind == "spec" else f"bare {kind} model"
        raise ModelError(f"{path}: found a {found}; expected a package")
    measured = None
    if promise is not None:
        check, measured = _delta(path, promise, checks, trust_code, ignore_lock)
        checks.append(check)
    return VerifyResult(path, tuple(checks), measured)


def _package_checks(
    path: Path,
    golden: bool,
    trust_code: bool,
    ignore_lock: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Check]:
    from ..runtime.package import Package

    with Package(path, check_hashes=False) as opened:
        reader = opened.reader
        container = "directory" if reader.is_directory else "zip"
        checks = [
            Check(
                "archive",
                PASS,
                f"{container} of {len(reader.names)} files, {reader.total_size:,} bytes",
            ),
            Check("config", PASS, f"{opened.config.name!r} for {opened.config.platform}"),
            _layout(opened),
            _hashes(opened, progress),
        ]
        failed = any(check.status == FAIL for check in checks)
        checks.append(_golden(opened, golden, failed, trust_code, ignore_lock))
    return checks


def _layout(package: Package) -> Check:
    try:
        package.source(package.path)
    except PackageError as error:
        return Check("layout", FAIL, error.message, CheckError.exit_code)
    names = package.reader.names
    if package.payload is None and not any(name.startswith("0/code/") for name in names):
        message = f"{package.label}: found no code below 0/code"
        return Check("layout", FAIL, message, CheckError.exit_code)
    return Check("layout", PASS, package.payload or "0/code")


def _hashes(package: Package, progress: Callable[[int, int], None] | None) -> Check:
    try:
        package.require_manifest()
    except PackageError as error:
        return Check("hashes", FAIL, error.message, CheckError.exit_code)
    if package.reader.manifest is None:
        return Check("hashes", SKIP, "no manifest.json: an early Neuropod wrote this package")
    problems = package.reader.check_hashes(progress)
    if problems:
        return _failed("hashes", [problem.describe() for problem in problems], "files")
    return Check("hashes", PASS, f"{len(package.reader.manifest)} files match manifest.json")


def _failed(name: str, details: list[str], what: str) -> Check:
    more = f" (and {len(details) - 1} more {what})" if len(details) > 1 else ""
    return Check(name, FAIL, details[0] + more, CheckError.exit_code, tuple(details))


def _golden(
    package: Package, wanted: bool, failed: bool, trust_code: bool, ignore_lock: bool
) -> Check:
    from ..runtime.package import NEUROPOD_GOLDEN_FILE

    if not wanted:
        return Check("golden", SKIP, "not asked for (--no-golden)")
    if failed:
        return Check("golden", SKIP, "not run, because another check failed")
    try:
        package.require_trust(trust_code)
        golden = package.golden(trust_code)
        if golden is None and package.reader.has(NEUROPOD_GOLDEN_FILE):
            message = f"{NEUROPOD_GOLDEN_FILE} is a pickle; --trust-code reads it"
            return Check("golden", SKIP, message)
        if golden is None:
            return Check("golden", SKIP, "the package carries no golden data")
        from ..runtime.child import check_package

        differences = check_package(
            package.path, golden, label=package.label, ignore_lock=ignore_lock
        )
    except (UntrustedCodeError, MissingDependencyError) as error:
        # What was not run has neither passed nor failed, but must not look like success.
        hint = f"; {error.hint}" if error.hint else ""
        return Check("golden", SKIP, error.message + hint, error.exit_code)
    except IngotError as error:
        return Check("golden", FAIL, error.message, CheckError.exit_code)
    if differences:
        return _failed("golden", [difference.message for difference in differences], "outputs")
    names = ", ".join(sorted(golden.outputs or {})) or "no outputs"
    return Check("golden", PASS, f"{names} within rtol {golden.rtol:g}, atol {golden.atol:g}")


def _delta(
    path: Path, promise: Promise, before: Sequence[Check], trust_code: bool, ignore_lock: bool
) -> tuple[Check, DeltaMeasured | None]:
    from .verify_delta import measure_delta

    if any(check.status == FAIL for check in before):
        return Check("delta", SKIP, "not run, because another check failed"), None
    try:
        found = measure_delta(path, promise, trust_code, ignore_lock)
    except (UntrustedCodeError, MissingDependencyError) as error:
        if not before:  # a bare file: nothing else was checked
            raise
        hint = f"; {error.hint}" if error.hint else ""
        return Check("delta", SKIP, error.message + hint, error.exit_code), None
    if found.is_kept:
        return Check("delta", PASS, found.describe()), found
    return Check("delta", FAIL, found.describe(), CheckError.exit_code), found
