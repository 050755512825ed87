# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo.cfg.load import (
    ALIASES,
    REFUSED,
    REMOVED,
    parse_value,
    read_options,
    read_yaml,
    resolve,
    write_yaml,
)
from yolo.cfg.schema import PredictConfig, TrainConfig, ValConfig
from yolo.errors import ConfigError, DataError, MissingFileError, YoloError
from yolo.tasks.detect.config import DetectTrainConfig

# ---------------------------------------------------------------------- options


def test_the_rightmost_layer_wins_and_nothing_is_changed():
    low, high = {"epochs": 3, "seed": 1}, {"epochs": 5}
    config = resolve(TrainConfig, low, high)
    assert (config.epochs, config.seed) == (5, 1)
    assert (low, high) == ({"epochs": 3, "seed": 1}, {"epochs": 5})
    assert config.model_fields_set == {"epochs", "seed"}


def test_an_alias_in_a_later_layer_wins_over_the_name():
    config = resolve(PredictConfig, {"half": True}, {"quantize": 32})
    assert config.half is False


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("imgz", "imgsz"), ("epoch", "epochs"), ("lr", "lrf"), ("optimiser", "optimizer")],
)
def test_unknown_option_names_the_nearest(wrong, right):
    with pytest.raises(ConfigError) as error:
        resolve(TrainConfig, {wrong: 1})
    message = str(error.value)
    assert message.startswith(f"unknown option {wrong!r} (train). Similar: ")
    assert repr(right) in message
    assert message.endswith("See 'yolo cfg'")
    assert "\n" not in message


def test_unknown_option_without_a_neighbour():
    with pytest.raises(ConfigError, match=r"^unknown option 'qqqq' \(val\)\. See 'yolo cfg'$"):
        resolve(ValConfig, {"qqqq": 1})
    with pytest.raises(ConfigError, match="unknown option '3'"):
        resolve(ValConfig, {3: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("schema", "name", "home"),
    [
        (PredictConfig, "epochs", "train"),
        (TrainConfig, "vid_stride", "predict"),
        (TrainConfig, "agnostic_nms", "val and predict and export"),
        (TrainConfig, "opset", "export"),
        (TrainConfig, "tracker", "track"),
        (TrainConfig, "tiles", "maps val and grids val"),
        (TrainConfig, "pretraind", None),
    ],
)
def test_an_option_of_another_place_is_sent_there(schema, name, home):
    text = f"{name!r} belongs to {home}, not to {schema.for_mode}"
    with pytest.raises(ConfigError, match=text if home else "unknown option.*'pretrained'"):
        resolve(schema, {name: 1}, elsewhere=tiles_of_other_tasks)


class Tiled(ValConfig):
    tiles: int = 4


def tiles_of_other_tasks(name):
    return [("maps", Tiled), ("grids", Tiled)] if name == "tiles" else []


def test_an_option_of_another_task_has_no_effect_and_says_so(caplog):
    """Scripts give one set of options to models of several tasks."""
    for value in (2, 4):
        assert resolve(ValConfig, {"tiles": value}, elsewhere=tiles_of_other_tasks) == ValConfig()
    (record,) = caplog.records  # 4 is what happens there anyway
    words = "option 'tiles' is for maps and grids; it has no effect on this model"
    assert record.getMessage() == words
    assert resolve(Tiled, {"tiles": 2}, elsewhere=tiles_of_other_tasks).tiles == 2


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("epochs", "ten", ("expected int >= 1", "found 'ten' (str)")),
        ("epochs", 0, ("expected int >= 1", "found 0 (int)")),
        ("save", 1, ("expected bool", "found 1 (int)")),
        ("fraction", 2.0, ("expected float in (0, 1]", "found 2.0 (float)")),
        ("optimizer", "AdamX", ("'AdamW'", "Similar: 'Adam")),
        ("batch", 0, ("expected a whole number of at least 1", "found 0")),
        ("imgsz", "big", ("expected int or (int, int)", "found 'big' (str)")),
        ("name", "x" * 9999, None),
        ("seed", "x" * 9999, ("expected int >= 0",)),
    ],
)
def test_type_errors_say_option_expected_found(name, value, parts):
    if parts is None:
        assert resolve(TrainConfig, {name: value}).name == value
        return
    with pytest.raises(ConfigError) as error:
        resolve(TrainConfig, {name: value})
    message = str(error.value)
    assert message.startswith(f"option {name!r} (train): ")
    assert all(part in message for part in parts)
    assert "\n" not in message
    assert len(message) < 250


def test_several_faults_have_a_line_each():
    with pytest.raises(ConfigError) as error:
        resolve(TrainConfig, {"epochs": 0, "save": 1, "imgsz": "big"})
    assert len(str(error.value).splitlines()) == 3


def test_config_error_is_what_python_callers_expect():
    with pytest.raises(TypeError):
        resolve(TrainConfig, {"imgz": 1})
    with pytest.raises(ValueError, match="imgz"):
        resolve(TrainConfig, {"imgz": 1})


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_removed_names_are_dropped_aloud(name, caplog):
    with caplog.at_level(logging.WARNING, "yolo"):
        assert resolve(TrainConfig, {name: 0.1}) == TrainConfig()
    assert name in caplog.text


def test_a_schema_that_has_a_removed_name_keeps_it():
    class Smoothed(TrainConfig):
        label_smoothing: float = 0.0

    assert resolve(Smoothed, {"label_smoothing": 0.1}).label_smoothing == 0.1


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_names_say_what_to_use(name):
    with pytest.raises(ConfigError) as error:
        resolve(PredictConfig, {name: True})
    assert REFUSED[name] in str(error.value)
    assert resolve(PredictConfig, {name: False}) == PredictConfig()


@pytest.mark.parametrize(
    ("name", "value", "now", "meant"),
    [
        ("hide_labels", True, "show_labels", False),
        ("hide_conf", False, "show_conf", True),
        ("boxes", False, "show_boxes", False),
        ("line_thickness", 3, "line_width", 3),
        ("quantize", 16, "half", True),
        ("quantize", 32, "half", False),
        ("quantize", None, "half", False),
        ("int8", False, "half", False),
    ],
)
def test_familiar_aliases(name, value, now, meant, caplog):
    with caplog.at_level(logging.WARNING, "yolo"):
        assert getattr(resolve(PredictConfig, {name: value}), now) == meant
    assert (name in caplog.text) == (name in ALIASES)


@pytest.mark.parametrize("given", [{"int8": True}, {"quantize": 8}, {"quantize": True}])
def test_eight_bit_is_sent_to_export(given):
    with pytest.raises(ConfigError, match="made by export"):
        resolve(PredictConfig, given)


def test_a_record_of_a_run_resolves_to_itself(tmp_path):
    config = resolve(DetectTrainConfig, {"imgsz": (320, 640), "lr0": 1e-5, "name": "007"})
    write_yaml(tmp_path / "args.yaml", config.model_dump())
    again = resolve(DetectTrainConfig, read_yaml(tmp_path / "args.yaml"))
    assert again == config


# ---------------------------------------------------------------------- command line values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None), ("none", None), ("NONE", None), ("true", True), ("False", False),
        ("3", 3), ("-1", -1), ("1e-3", 1e-3), (".5", 0.5), ("320,640", (320, 640)),
        ("[0, 1]", [0, 1]), ("'x y'", "x y"), ("a.jpg", "a.jpg"), ("[640,", "[640,"),
        ("007", "007"), ("__import__('os')", "__import__('os')"), ("", ""), ("a\0b", "a\0b"),
        ("(" * 5000, "(" * 5000),
    ],
)  # fmt: skip
def test_parse_value(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_parse_value_never_fails(text):
    parse_value(text)


# ---------------------------------------------------------------------- YAML


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("1.5e+3", 1500.0), (".5", 0.5), ("-1.", -1.0),
        ("5", 5), ("-7", -7), ("0x1F", 31), ("0", 0), (".inf", float("inf")),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("y", "y"), ("010", "010"), ("1:20", "1:20"),
        ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("'5'", "5"), ("None", "None"),
        ("e5", "e5"), ("1.2.3", "1.2.3"), ("3x", "3x"), ("-", [None]),
    ],
)  # fmt: skip
def test_plain_scalars(tmp_path, text, value):
    path = write(tmp_path, f"key:\n  {text}\n")
    found = read_yaml(path)["key"]
    assert found == value
    assert type(found) is type(value)


def test_mapping_keys_may_be_numbers(tmp_path):
    assert read_yaml(write(tmp_path, "names: {0: a, 1: no}")) == {"names": {0: "a", 1: "no"}}


def test_byte_order_mark_and_empty_file(tmp_path):
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1")) == {"a": 1}
    assert read_yaml(write(tmp_path, "# nothing\n")) == {}


def test_aliases_and_merge_keys_work(tmp_path):
    path = write(tmp_path, "base: &b {x: 1, y: 2}\nnear: {<<: *b, y: 3}\nsame: *b\n")
    assert read_yaml(path) == {
        "base": {"x": 1, "y": 2},
        "near": {"x": 1, "y": 3},
        "same": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' stands in line 1 already"),
        ("x:\n  names: {0: a,\n    0: b}\n", 3, "key '0' stands in line 2 already"),
        ("a: [1,\nb: 2\n", 3, "while parsing a flow sequence begun in line 1"),
        ("a: 1\n\tb: 2\n", 2, ""),
        ("a: 1\nb: \x01\n", 2, "remove the character"),
        (b"a: 1\nb: \xff\xfe\n", 2, "not UTF-8"),
        ("- 1\n- 2\n", 1, "found a list"),
        ("just text\n", 1, "found a str"),
        ("a: 1\n--- \nb: 2\n", 2, "another document"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "python/object"),
        ("a: &x [1, *x]\n", 1, "an alias stands for what contains it"),
        ("a: *nothing\n", 1, "undefined alias"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path, text, line, words):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_yaml(path, error=DataError)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message
    assert "\n" not in message


def test_alias_bomb_is_refused_quickly(tmp_path):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="aliases expand to more than"):
        read_yaml(write(tmp_path, "\n".join(rows)))
    assert time.perf_counter() - start < 5


def test_merge_bomb_is_refused(tmp_path):
    rows = ["a0: &a0 {k: 1}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 40)]
    with pytest.raises(ConfigError, match="aliases expand to more than"):
        read_yaml(write(tmp_path, "\n".join(rows)))


def test_deep_nesting_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_yaml(write(tmp_path, "a: " + "[" * 20_000))


def test_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="at most 16 MiB"):
        read_yaml(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MissingFileError, match="found nothing"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_yaml(tmp_path)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_mapping_or_a_clear_error(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp(), data)
    try:
        found = read_yaml(path)
    except YoloError as error:
        found = {"file": str(path)} if str(path) in str(error) else None
    assert isinstance(found, dict)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, mapping):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    write_yaml(path, mapping)
    assert read_yaml(path) == mapping


def test_text_that_looks_like_more_is_quoted_for_other_readers_too(tmp_path):
    mapping = {"a": "no", "b": "1e-3", "c": "1:20", "d": "007", "e": "null"}
    write_yaml(tmp_path / "a.yaml", mapping)
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == mapping


def test_write_takes_paths_and_tuples_and_leaves_no_draft(tmp_path):
    write_yaml(tmp_path / "a.yaml", {"p": Path("x/y"), "t": (1, 2)})
    assert read_yaml(tmp_path / "a.yaml") == {"p": "x/y", "t": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_write_refuses_objects_and_keeps_the_old_file(tmp_path):
    write_yaml(tmp_path / "a.yaml", {"old": 1})
    with pytest.raises(ConfigError, match="expected plain data"):
        write_yaml(tmp_path / "a.yaml", {"new": object()})
    assert read_yaml(tmp_path / "a.yaml") == {"old": 1}


def test_options_of_a_file(tmp_path):
    file = tmp_path / "args.yaml"
    write_yaml(file, {"epochs": 3, "plugins": [], "save_dir": "/somewhere"})
    assert read_options(file, {}) == {"epochs": 3}


def test_a_file_of_options_brings_no_code(tmp_path):
    file = tmp_path / "args.yaml"
    write_yaml(file, {"epochs": 3, "plugins": ["a.py", "b.py"]})
    with pytest.raises(ConfigError, match=r"args\.yaml: names plugins.*give plugins=a\.py,b\.py"):
        read_options(file, {})
    assert read_options(file, {"plugins": ("a.py",)}) == {"epochs": 3}
