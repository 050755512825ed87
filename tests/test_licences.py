# SPDX-License-Identifier: Apache-2.0
"""What an installation brings along may be used freely: no package of ours needs a copyleft one."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

COPYLEFT = re.compile(
    r"\b[AL]?GPL|\bGNU\b|\bEUPL|\bSSPL|\bOSL\b|CC.BY.(NC|SA)|Commons Clause|Affero|General Public",
    re.IGNORECASE,
)
SILENT = {"faster-coco-eval": "Apache-2.0", "cuda-toolkit": "NVIDIA's, as torch's own packages"}
"""Distributions whose metadata name no licence; their files or makers do."""

PRODUCT = "plainyolo"


def needed(name, extras=("",), found=None):
    """Collect the installed distributions that one needs, itself included."""
    found = {} if found is None else found
    try:
        package = distribution(name)
    except PackageNotFoundError:  # of another platform
        return found
    found[re.sub(r"[-_.]+", "-", name).lower()] = package
    for text in package.requires or ():
        requirement = Requirement(text)
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        )
        if wanted and key not in found:
            needed(requirement.name, tuple(requirement.extras) or ("",), found)
    return found


def licence_of(package):
    """Return all that a distribution says of its licence in a few words."""
    said = package.metadata.get_all("Classifier") or []
    said = [line for line in said if line.startswith("License")]
    expression = package.metadata.get("License-Expression") or ""
    text = package.metadata.get("License") or ""
    return " | ".join([expression, *said] if expression or said else [text[:200]])


def test_no_package_of_an_installation_is_copyleft():
    extras = set(distribution(PRODUCT).metadata.get_all("Provides-Extra")) - {"test"}
    found = needed(PRODUCT, ("", *extras))
    assert {"torch", "opencv-python", "pydantic", PRODUCT} <= set(found)
    said = {name: licence_of(package) for name, package in found.items()}
    assert not {name for name, text in said.items() if not text.strip()} - set(SILENT)
    assert not {name: text for name, text in said.items() if COPYLEFT.search(text)}


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("AGPL-3.0", True), ("GNU Affero General Public License v3", True), ("LGPL-2.1", True),
        ("License :: OSI Approved :: GNU General Public License v2 (GPLv2)", True),
        ("Apache-2.0 OR MIT", False), ("BSD-3-Clause", False), ("MIT-CMU", False),
    ],
)  # fmt: skip
def test_copyleft_is_told_from_the_rest(text, copyleft):
    assert bool(COPYLEFT.search(text)) == copyleft
