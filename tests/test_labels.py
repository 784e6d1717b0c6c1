"""Label numbers to class indices and back, and what dataset.json declares."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcontext.data.description import read_description
from medcontext.data.labels import IGNORED, Labels, Region
from medcontext.errors import MedContextError

numbers = st.lists(st.integers(1, 300) | st.integers(2**16, 2**31 - 1), min_size=1, max_size=8, unique=True)


@given(numbers, st.integers(0, 2**32 - 1), st.booleans())
def test_every_declared_number_comes_back_and_everything_else_is_background(chosen, seed, ignores):
    *kept, other = [*chosen, 7_777]
    labels = Labels({n: str(n) for n in kept if n != other}, ignore=other if ignores else None)
    rng = np.random.default_rng(seed)
    array = rng.choice([0, *kept, other, 123_456_789 if 123_456_789 not in kept else 0], size=(3, 4, 5)).astype(
        np.int32
    )
    indices = labels.to_indices(array)
    known = np.isin(array, list(labels.names))
    np.testing.assert_array_equal(labels.to_numbers(np.maximum(indices, 0)), np.where(known, array, 0))
    assert ((indices == IGNORED) == ((array == other) & ignores)).all()


def test_classes_follow_the_order_of_the_names_and_the_type_has_room_for_them():
    labels = Labels({40: "a", 3: "b"})
    assert labels.to_indices(np.array([[[0, 3, 40, 5, -2]]])).tolist() == [[[0, 2, 1, 0, 0]]]
    assert labels.to_indices(np.zeros((1, 1, 1), np.int32)).dtype == np.uint8
    many = Labels({n: str(n) for n in range(1, 300)})
    assert many.to_indices(np.array([[[299]]])).tolist() == [[[299]]]


def test_regions_know_their_classes_and_their_outputs():
    labels = Labels(
        {1: "necrosis", 2: "edema", 4: "enhancing"},
        regions=(Region("whole", (1, 2, 4), 2), Region("core", (1, 4), 1), Region("enhancing", (4,), 4)),
    )
    assert labels.outputs == 3
    assert labels.classes == 4
    expected = [[False, True, True, True], [False, True, False, True], [False, False, False, True]]
    assert labels.membership().tolist() == expected
    assert labels.structures == {2: ("whole", (1, 2, 4)), 1: ("core", (1, 4)), 4: ("enhancing", (4,))}
    assert Labels({1: "a"}).membership() is None


def test_a_way_through_json_changes_nothing():
    labels = Labels({5: "a", 2: "b"}, (7,), 9, (Region("r", (5, 2), 5),))
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    assert list(Labels.from_dict(json.loads(json.dumps(labels.to_dict()))).names) == [5, 2]


def describe(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))
    return read_description(folder)


def test_both_ways_of_declaring_labels_say_the_same(tmp_path):
    decathlon = describe(tmp_path, labels={"0": "background", "2": "b", "1": "a"})
    nnunet = describe(tmp_path, labels={"background": 0, "b": 2, "a": 1}, channel_names={"1": "T2", "0": "T1"})
    assert decathlon.labels == nnunet.labels == Labels({1: "a", 2: "b"})
    assert nnunet.modality == ("T1", "T2")


def test_regions_ignored_and_background_labels_are_read(tmp_path):
    declared = describe(
        tmp_path,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 5},
        regions_class_order=[1, 2, 3],
        background_labels={"skull": 8},
    ).labels
    assert declared.regions == (
        Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3)
    )  # fmt: skip
    assert list(declared.names) == [1, 2, 3]
    assert declared.declared == {0, 1, 2, 3, 5, 8}


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"0": "background", "1": "a", "2": "a"}},
        {"labels": {"background": 0, "a": 1, "b": 1}},
        {"labels": {"background": 0, "a": "one"}},
        {"labels": ["background", "a"]},
        {"labels": {"background": 0, "a": [1, 2]}},
        {"labels": {"background": 0, "a": [1, 2], "b": [1]}, "regions_class_order": [1]},
        {"labels": {"background": 0, "a": [1, 2], "b": [1]}, "regions_class_order": [1, 1]},
        {"labels": {"background": 0, "a": [1, 2, 4], "b": [1, 4], "c": [4]}, "regions_class_order": [1, 2, 3]},
        {"labels": {"background": 0, "a": [1, 2], "b": [1]}, "regions_class_order": [1, 2]},
        {"labels": {"background": 0, "a": [1, 3], "b": [2, 3]}, "regions_class_order": [1, 2]},
        {"labels": {"background": 0, "a": [1, 2], "b": [1], "c": [2]}, "regions_class_order": [7, 1, 2]},
        {"labels": {"background": 0, "a": [1, 2], "b": [1], "c": [2], "ignore": 9}, "regions_class_order": [9, 1, 2]},
        {"labels": {"background": 0, "a": float("inf")}},
        {"labels": {"background": 0, "a": 1, "ignore": "x"}},
        {"labels": {"background": 0, "a": 1, "ignore": -1}},
        {"labels": {"background": 0, "a": 1, "ignore": 1}},
        {"labels": {"0": "background", "-5": "a"}},
        {"labels": {"background": 0, "a": 1}, "background_labels": {"b": 1}},
        {"labels": {"background": 0, "a": [1, 2], "ignore": 2}, "regions_class_order": [1]},
        {"protocol": [1, 1, 1]},
        {"channel_names": "CT"},
        {"modality": {"first": "CT"}},
    ],
)
def test_a_declaration_that_makes_no_sense_is_an_error_that_names_the_file(tmp_path, content):
    with pytest.raises(MedContextError) as caught:
        describe(tmp_path, **content)
    assert caught.value.file == str(tmp_path / "dataset.json")
