"""Checks that what a package demands of its environment is there: versions and locked packages."""

from __future__ import annotations

import re
from importlib import metadata

from ..errors import MissingDependencyError, ModelError, PackageError

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*([^\s;,#]+)$")


def check_platform_version(
    semver_range: str, platform: str, installed: str | None, label: str
) -> None:
    """Check an npm-style version range (``^2.1.0``) against the installed framework.

    A local version (``+cpu``) does not count; a pre-release counts as its release.

    Raises:
        ModelError: the range is invalid, or excludes the installed version.
    """
    if semver_range.strip() in ("", "*") or installed is None:
        return
    from semantic_version import NpmSpec, Version

    try:
        wanted = NpmSpec(semver_range)
    except ValueError as error:
        raise ModelError(
            f"{label}: platform_version_semver: found {semver_range!r};"
            " expected an npm-style version range such as '^2.1.0'"
        ) from error
    version = Version.coerce(installed.split("+")[0])
    if version.truncate() not in wanted:
        raise ModelError(
            f"{label}: it needs {platform} {semver_range} (platform_version_semver);"
            f" found {installed}",
            hint=f"run it in an environment with {platform} {semver_range}",
        )


def parse_lock(text: str, label: str) -> dict[str, str]:
    """Parse a lock: one ``name==version`` a line, with ``#`` comments.

    Returns:
        versions by name, in the order of the file.

    Raises:
        PackageError: a line is something else.
    """
    pins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        requirement = line.split("#")[0].strip()
        if not requirement:
            continue
        match = _PIN.match(requirement)
        if match is None:
            raise PackageError(f"{label}:{number}: found {requirement!r}; expected name==version")
        pins[match[1]] = match[2]
    return pins


def check_lock(text: str, label: str) -> None:
    """Check that every locked package is installed in its locked version.

    Raises:
        MissingDependencyError: one is not.
        PackageError: the lock is malformed.
    """
    problems = []
    for name, wanted in parse_lock(text, f"{label}: 0/requirements.lock").items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed, locked is {wanted}")
            continue
        if found.split("+")[0] != wanted.split("+")[0]:
            problems.append(f"{name} is {found}, locked is {wanted}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise MissingDependencyError(
            f"{label}: its requirements.lock does not fit this environment: {problems[0]}{more}",
            hint="install it (ingot inspect PACKAGE --requirements > lock.txt;"
            " pip install -r lock.txt), or run it all the same with --ignore-lock",
        )
