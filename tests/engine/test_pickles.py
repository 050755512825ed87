# SPDX-License-Identifier: Apache-2.0
"""The pickle machine: plain data as Python's own pickler writes them, and nothing else."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo.engine.pickles import Machine, Name, Record, make_dict, make_set
from yolo.errors import CheckpointError

FUNCTIONS = {
    "collections.OrderedDict": make_dict, "builtins.set": make_set, "builtins.frozenset": make_set,
}  # fmt: skip


def read(data):
    return Machine(FUNCTIONS, re.compile(r"known\.[A-Z]\w*"), lambda found: ("id", found)).run(data)


scalars = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False)
    | st.text() | st.binary()
)  # fmt: skip
keys = st.none() | st.booleans() | st.integers() | st.text()
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.tuples(inner)
        | st.dictionaries(keys, inner) | st.sets(keys) | st.frozensets(keys)
    ),
    max_leaves=12,
)  # fmt: skip


@given(trees, st.integers(3, 5))
def test_plain_data_come_back(tree, protocol):
    assert read(pickle.dumps(tree, protocol)) == tree


def test_shared_parts_stay_shared_and_long_ones_are_read():
    shared = list(range(3000))
    found = read(pickle.dumps([shared, shared, OrderedDict(a=1), "x" * 70_000], 2))
    assert found[0] is found[1]
    assert found[0] == shared
    assert found[2:] == [{"a": 1}, "x" * 70_000]


def test_objects_of_known_classes_become_records():
    found = read(b"\x80\x02cknown\nThing\n)\x81}X\x01\x00\x00\x00aK\x05sb.")
    assert isinstance(found, Record)
    assert (found.kind, found.args, found.state) == ("known.Thing", (), {"a": 5})
    assert read(b"\x80\x02cknown\nThing\n.") == Name("known.Thing")


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x02cknown\nlower\n)\x81.", "known.lower"),
        (b"\x80\x02cknown.deep\nThing\n)\x81.", "known.deep.Thing"),
        (b"\x80\x04\x8c\x05known\x8c\x09Thing.sub\x93.", "known.Thing.sub"),
        (b"\x80\x04\x8c\x05known\x8c\x06Thing\n\x93.", "known.Thing"),
        (b"(cknown\nThing\no.", "OBJ"),
        (b"(iknown\nThing\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02Ptext\n.", "PERSID"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8"),
        (b"\x80\x02cknown\nThing\n)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "calls what has no name"),
        (b"\x80\x02cknown\nThing\n)\x81)R.", "calls what has no name"),
        (b"\x80\x02})K\x01s.", "tuple as a key"),
        (b"\x80\x04\x8f()\x90.", "tuple as a key"),
        (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", "long number"),
    ],
)
def test_anything_else_is_refused_by_name(program, named):
    with pytest.raises(CheckpointError) as caught:
        read(program)
    message = str(caught.value)
    assert "\n" not in message.replace("Thing\n", "")
    assert message.startswith("refused:")
    assert named in message


@pytest.mark.parametrize(
    "program",
    [b"", b"\x80\x02", b"\x80\x02]K\x01", b"\x80\x02.", b"e.", b"\x80\x02h\x07.",
     b"\x80\x02)K\x01a.", b"\x80\x04K\x01K\x02\x93.", b"\x80\x02K\x01}b.", b"\x80\x02\x86.",
     b"\x80\x02}(K\x01u.", b"\x80\x02q\x01.", b"\xff\xff"],
)  # fmt: skip
def test_damage_is_an_error_of_ours(program):
    with pytest.raises(CheckpointError, match="damaged"):
        read(program)


@given(st.binary(max_size=60))
def test_no_program_gets_out(program):
    with contextlib.suppress(CheckpointError):
        read(b"\x80\x04" + program)
