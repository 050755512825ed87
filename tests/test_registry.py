# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from yolo.errors import ConfigError, UnknownNameError
from yolo.registry import Registry


@pytest.fixture
def parts() -> Registry[object]:
    registry: Registry[object] = Registry("assigner")
    registry.add("task_aligned", "tal")
    registry.add("simota", "ota")
    return registry


def test_a_registry_is_a_mapping_in_order(parts):
    assert parts["simota"] == "ota"
    assert dict(parts) == {"task_aligned": "tal", "simota": "ota"}
    assert list(parts) == ["task_aligned", "simota"]
    assert len(parts) == 2
    assert "atss" not in parts


def test_decorator_registers_and_returns_what_it_decorates(parts):
    @parts.register("atss")
    class Atss:
        pass

    assert parts["atss"] is Atss


def test_the_same_object_again_is_no_clash(parts):
    part = object()
    assert parts.add("x", part) is part
    assert parts.add("x", part) is part


def test_another_object_under_a_name_is_refused_and_the_first_stays(parts):
    with pytest.raises(ConfigError, match="assigner 'simota' is registered already"):
        parts.add("simota", "other")
    assert parts["simota"] == "ota"


def test_a_miss_names_the_nearest_and_all(parts):
    with pytest.raises(UnknownNameError) as error:
        parts["simotta"]
    message = str(error.value)
    assert message.startswith("unknown assigner 'simotta'. Similar: 'simota'.")
    assert message.endswith("Known: simota, task_aligned")


def test_a_miss_is_a_key_error_and_a_value_error(parts):
    with pytest.raises(KeyError):
        parts["none"]
    with pytest.raises(ValueError, match="unknown assigner"):
        parts["none"]
    assert parts.get("none") is None


def test_a_miss_in_an_empty_registry_says_so():
    with pytest.raises(UnknownNameError, match="Known: none"):
        Registry("layer")["Conv"]


def test_registries_are_apart():
    first, second = Registry[int]("a"), Registry[int]("b")
    first.add("x", 1)
    assert "x" not in second
