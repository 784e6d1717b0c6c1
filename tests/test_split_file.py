"""Split files: what is written is read, two groups compare hashes, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.split import Split, make_folds, patients_of, with_validation
from medcontext.data.split_file import SplitFile, read_split_file, write_split_file
from medcontext.errors import MedContextError
from medcontext.training.cases import split_for
from medcontext.training.config import TrainConfig

GOOD = {"name": "mine", "source": "drawn", "folds": [{"train": ["a", "b"], "validation": ["c"], "test": ["d"]}]}


@st.composite
def splits(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=3, max_size=12, unique=True))
    folds = make_folds(patients_of(names, None), folds=draw(st.integers(2, len(names))), validation_share=0, seed=0)
    share = draw(st.sampled_from([0, 0.3]))
    if all(len(fold.train) > 1 for fold in folds):
        folds = tuple(with_validation(fold, share=share, seed=1, patients={n: n for n in names}) for fold in folds)
    return SplitFile(draw(st.text(max_size=5)), draw(st.text(max_size=5)), folds)


def changed(fold=None, **keys):
    """The good file with keys of its own, or of its fold, set anew."""
    return GOOD | keys | ({"folds": [GOOD["folds"][0] | fold]} if fold else {})


def written(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@given(split=splits())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(split, tmp_path_factory):
    file = tmp_path_factory.mktemp("split") / "mine.json"
    write_split_file(file, split)
    read = read_split_file(file)
    assert read == split
    assert read.file == file
    assert read.hash == split.hash
    assert json.loads(file.read_text()).keys() == {"name", "source", "folds"}


@given(split=splits(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_hash_knows_who_is_where_and_nothing_else(split, data):
    shuffled = [
        Split(*(tuple(data.draw(st.permutations(part))) for part in (fold.train, fold.validation, fold.test)))
        for fold in split.folds
    ]
    assert SplitFile("other", "elsewhere", tuple(shuffled), Path("x.json")).hash == split.hash
    number = data.draw(st.integers(0, len(split.folds) - 1))
    fold = split.folds[number]
    source, target = data.draw(st.permutations(["train", "validation", "test"]))[:2]
    if len(getattr(fold, source)) > (source == "train"):
        name = data.draw(st.sampled_from(getattr(fold, source)))
        moved = {
            source: tuple(each for each in getattr(fold, source) if each != name),
            target: (*getattr(fold, target), name),
        }
        other = dataclasses.replace(fold, **moved)
        folds = (*split.folds[:number], other, *split.folds[number + 1 :])
        assert dataclasses.replace(split, folds=folds).hash != split.hash


def test_the_hash_is_what_anyone_can_compute():
    """``printf '[{"test": ["d"], "train": ["a", "b"], "validation": ["c"]}]' | sha256sum`` begins with these digits."""
    split = SplitFile("mine", "drawn", (Split(("b", "a"), ("c",), ("d",)),))
    assert split.hash == "ac127b1c60650add"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (changed({"test": ["d", "a"]}), ["'a' in 'train' and again in 'test' of fold 0"]),
        (changed({"validation": ["c", "b"]}), ["'b' in 'train' and again in 'validation' of fold 0"]),
        (changed({"train": ["a", "b", "a"]}), ["'a' in 'train' and again in 'train' of fold 0"]),
        (changed({"train": []}), ["'train' of fold 0 is empty"]),
        (changed({"train": "ab"}), ["'train' of fold 0", '"ab"']),
        (changed({"test": ["d", 7]}), ["7 in 'test' of fold 0"]),
        (changed({"test": None}), ["'test' of fold 0 is null"]),
        (changed({"val": ["e"]}), ["fold 0", "unknown 'val'"]),
        (changed(folds=[*GOOD["folds"], {"train": ["a"]}]), ["fold 1", "no 'test'", "no 'validation'"]),
        (changed(folds=[*GOOD["folds"], 3]), ["fold 1 is 3"]),
        (changed(folds=[]), ["at least one"]),
        (changed(folds="all"), ["'folds' is \"all\""]),
        (changed(name=3), ["'name' is 3"]),
        (changed(hash="12"), ["the file", "unknown 'hash'"]),
        ({"train": ["a"], "test": ["b"]}, ["no 'folds'"]),
        ("split", ['the file is "split"']),
        ([], ["at least one"]),
        ([{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["a"]}], ["'a' in 'train'", "fold 1"]),
        ([{"train": ["a"], "test": ["b"]}], ["unknown 'test'", "no 'val'", "fold 0"]),
        ([["a"], ["b"]], ['fold 0 is ["a"]']),
    ],
)
def test_what_is_wrong_is_named_with_its_file(value, said, tmp_path):
    file = written(tmp_path / "bad.json", value)
    with pytest.raises(MedContextError) as error:
        read_split_file(file)
    assert error.value.file == str(file)
    for words in said:
        assert words in str(error.value)


JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "folds", "train", "val", "validation", "test"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=JSON)
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_split_or_an_error_that_names_the_file(value, tmp_path_factory):
    file = written(tmp_path_factory.mktemp("any") / "any.json", value)
    try:
        named = str(read_split_file(file).file)
    except MedContextError as error:
        named = error.file
    assert named == str(file)


def test_a_split_with_a_case_twice_cannot_be_made():
    with pytest.raises(MedContextError, match="twice"):
        SplitFile("mine", "drawn", (Split(("a",), (), ("a",)),))


def test_a_split_is_checked_against_the_cases_and_patients_of_a_data_set(tmp_path):
    split = read_split_file(written(tmp_path / "mine.json", GOOD))
    alone = patients_of("abcd", None)
    assert split.checked_against(alone) == ()
    assert split.checked_against(alone | {"f": "f", "e": "e"}) == ("e", "f")
    assert split.checked_against(alone | {"a": "p", "b": "p", "e": "p"}) == ("e",)
    with pytest.raises(MedContextError, match="not in the data set") as error:
        split.checked_against(patients_of("bcd", None))
    assert (error.value.file, error.value.found) == (str(tmp_path / "mine.json"), "1 of 4, for example 'a'")
    with pytest.raises(MedContextError, match="patient on two sides") as error:
        split.checked_against(alone | {"b": "p", "d": "p"})
    assert error.value.file == str(tmp_path / "mine.json")
    assert error.value.found == "patient 'p' in fold 0: 'b' in 'train', 'd' in 'test'"
    with pytest.raises(MedContextError, match="not in the data set"):
        split.checked_against({})


def test_a_patient_may_change_sides_between_folds():
    patients = {"a1": "a", "a2": "a", "b": "b"}
    folds = Split(("a1", "a2"), (), ("b",)), Split(("b",), (), ("a1", "a2"))
    assert SplitFile("two", "drawn", folds).checked_against(patients) == ()


def test_what_nnunet_scores_is_held_out(tmp_path):
    file = written(
        tmp_path / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["b"]}]
    )
    split = read_split_file(file)
    assert split.folds == (Split(("a", "b"), (), ("c",)), Split(("c",), (), ("b",)))
    assert split.name == "splits_final"


def test_the_split_of_a_run_is_a_split_file(tmp_path):
    fold = Split(("a", "b"), ("c",), ("d",))
    split = read_split_file(written(tmp_path / "split.json", dataclasses.asdict(fold)))
    assert split.folds == (fold,)
    assert split.hash == SplitFile("mine", "drawn", (fold,)).hash


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("train: a")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(MedContextError) as error:
            read_split_file(tmp_path / name)
        assert error.value.file == str(tmp_path / name)


def test_validation_cases_for_a_split_file_are_drawn_evenly_over_groups(tiny, tmp_path):
    report = check_dataset(open_dataset(tiny))
    groups = {name: f"group {place % 2}" for place, name in enumerate(report.dataset.cases)}
    cases = {name: dataclasses.replace(case, stratum=groups[name]) for name, case in report.dataset.cases.items()}
    report = dataclasses.replace(report, dataset=dataclasses.replace(report.dataset, cases=cases))
    file = written(tmp_path / "split.json", changed({"train": list(cases), "validation": [], "test": []}))
    for seed in range(10):
        config = TrainConfig(split=file, validation_share=0.5, split_seed=seed)
        validation = split_for(report, config, lambda text: None).validation
        assert sorted(groups[name] for name in validation) == ["group 0"] * 2 + ["group 1"] * 2
