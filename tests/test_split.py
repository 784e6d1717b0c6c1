"""Splits: a partition by patient that only the seed decides, even over strata; cross-validation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.dataset import open_dataset
from medcontext.data.split import Split, make_folds, make_split, patients_of, with_validation
from medcontext.errors import MedContextError

SHARES = st.floats(0, 0.4)
SEEDS = st.integers(0, 999)


@st.composite
def cohorts(draw, least=6, most=30):
    """Case to patient and case to stratum: patients of one to three scans, all of one stratum."""
    patients, strata = {}, {}
    for number in range(draw(st.integers(least, most))):
        stratum = draw(st.sampled_from(["healthy", "ill", None]))
        for scan in range(draw(st.integers(1, 3))):
            patients[f"P{number:02d}_{scan}"] = f"P{number:02d}"
            strata[f"P{number:02d}_{scan}"] = stratum
    return patients, strata


def mixed(values, seed):
    """The same mapping, put in in another order."""
    names = list(values)
    return {names[place]: values[names[place]] for place in np.random.default_rng(seed).permutation(len(names))}


def parts(split):
    return split.train, split.validation, split.test


def require_partition(split, patients):
    assert sorted(name for part in parts(split) for name in part) == sorted(patients)
    sides = [{patients[name] for name in part} for part in parts(split)]
    assert sum(map(len, sides)) == len(set(patients.values()))


def count_strata(names, patients, strata):
    return Counter({patients[name]: strata[name] for name in names}.values())


@given(cohort=cohorts(), test=SHARES, validation=SHARES, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_split_has_whole_patients_and_even_strata_in_any_order(cohort, test, validation, seed):
    patients, strata = cohort
    shares = {"test_share": test, "validation_share": validation, "seed": seed}
    split = make_split(patients, **shares, patient=patients, strata=strata)
    require_partition(split, patients)
    other = mixed(patients, seed)
    assert split == make_split(other, **shares, patient=other, strata=mixed(strata, seed + 1))
    # The sizes are those without strata, and each stratum gives its share, rounded down or up.
    plain = make_split(patients, **shares, patient=patients)
    everyone = set(patients.values())
    held_out, plainly = ({patients[name] for name in each.test} for each in (split, plain))
    assert len(held_out) == len(plainly)
    counts, drawn = count_strata(patients, patients, strata), count_strata(split.test, patients, strata)
    for stratum, count in counts.items():
        assert abs(drawn[stratum] - count * len(held_out) / len(everyone)) < 1


def test_the_same_seed_gives_the_split_it_always_gave():
    """Splits of runs that are finished can be drawn again; made with the first version of the function."""
    cases = [f"P{number:02d}_{phase}" for number in range(6) for phase in ("ED", "ES")]
    shares = {"test_share": 0.2, "validation_share": 0.2, "seed": 7}
    split = make_split(cases, **shares, patient=r"P\d+")
    assert split == make_split(cases, **shares, patient=patients_of(cases, r"(P\d+)_E."))
    assert (split.validation, split.test) == (("P02_ED", "P02_ES"), ("P05_ED", "P05_ES"))


def test_every_patient_is_as_likely_to_be_held_out():
    strata = {f"{number:02d}": number < 3 for number in range(10)}
    held_out = Counter()
    for seed in range(600):
        held_out.update(make_split(strata, test_share=0.4, validation_share=0, seed=seed, strata=strata).test)
    # 240 of 600 expected, with a standard deviation of 12.
    assert all(abs(held_out[name] - 240) < 60 for name in strata), held_out


@given(cohort=cohorts(), folds=st.integers(2, 6), share=st.floats(0, 0.3), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_each_patient_is_held_out_in_one_fold(cohort, folds, share, seed):
    patients, strata = cohort
    splits = make_folds(patients, folds=folds, validation_share=share, seed=seed, strata=strata)
    assert len(splits) == folds
    for split in splits:
        require_partition(split, patients)
        assert split.test
        assert bool(split.validation) == (share > 0)
    assert sorted(name for split in splits for name in split.test) == sorted(patients)
    sizes = [len({patients[name] for name in split.test}) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    counts = [count_strata(split.test, patients, strata) for split in splits]
    for stratum in set(strata.values()):
        numbers = [count[stratum] for count in counts]
        assert max(numbers) - min(numbers) <= 1
    again = make_folds(
        mixed(patients, seed), folds=folds, validation_share=share, seed=seed, strata=mixed(strata, seed)
    )
    assert again == splits


def test_folds_depend_on_the_seed_and_choose_checkpoints_on_various_patients():
    patients = patients_of(map(str, range(40)), None)
    splits = make_folds(patients, folds=5, validation_share=0.1, seed=0)
    assert splits != make_folds(patients, folds=5, validation_share=0.1, seed=1)
    assert [len(split.test) for split in splits] == [8] * 5
    assert [len(split.validation) for split in splits] == [3] * 5
    distinct = [
        len(
            {
                name
                for split in make_folds(patients, folds=5, validation_share=0.1, seed=seed)
                for name in split.validation
            }
        )
        for seed in range(40)
    ]
    # Drawn anew for each fold, 15 draws give 40 * (1 - (1 - 3 / 32) ** 4) = 13.0 patients.
    assert np.mean(distinct) == pytest.approx(13.0, abs=0.6)


def test_a_patient_belongs_to_the_stratum_of_all_its_scans_together():
    """Two kinds of patients, though each kind of scan occurs in both."""
    patients = {f"{number}{scan}": str(number) for number in range(8) for scan in "ab"}
    strata = {name: "left" if name.endswith("a") or int(name[0]) % 2 else "right" for name in patients}
    for split in make_folds(patients, folds=4, validation_share=0, seed=3, strata=strata):
        assert sorted(int(name[0]) % 2 for name in split.test) == [0, 0, 1, 1]


@given(cohort=cohorts(), share=st.floats(0.01, 0.4), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_validation_comes_from_the_training_part_alone(cohort, share, seed):
    patients, strata = cohort
    fold = make_folds(patients, folds=2, validation_share=0, seed=seed)[0]
    assert not fold.validation
    carved = with_validation(fold, share=share, seed=seed, patients=patients, strata=strata)
    require_partition(carved, patients)
    assert carved.test == fold.test
    assert carved.validation
    assert with_validation(carved, share=0.9, seed=seed + 1, patients=patients) == carved


def test_what_cannot_be_split_is_refused():
    patients = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
    with pytest.raises(MedContextError, match="too few patients") as error:
        make_folds(patients, folds=4, validation_share=0, seed=0)
    assert error.value.found == "3 patients, 4 folds"
    with pytest.raises(MedContextError, match="folds") as error:
        make_folds(patients, folds=1, validation_share=0, seed=0)
    assert error.value.expected == "a whole number, 2 or more"
    with pytest.raises(MedContextError, match="too few cases") as error:
        make_split(patients, test_share=0.2, validation_share=0.5, seed=0, patient={**patients, "b": "a"})
    assert error.value.found == "4 cases of 2 patients"
    with pytest.raises(MedContextError, match="no patient") as error:
        make_split([*patients, "d"], test_share=0.2, validation_share=0.2, seed=0, patient=patients)
    assert error.value.found == "d"
    with pytest.raises(MedContextError, match="no stratum") as error:
        make_folds(patients, folds=2, validation_share=0, seed=0, strata={"a1": 1, "a2": 1, "c": 2})
    assert error.value.found == "b"


def test_patients_are_found_in_names():
    cases = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    assert patients_of(cases, None) == {name: name for name in cases}
    assert list(patients_of(cases, r"patient(\d+)").values()) == ["001", "001", "002"]
    assert list(patients_of(cases, r"patient\d+").values()) == ["patient001", "patient001", "patient002"]
    for pattern in ("subject", r"x*", r"patient(x)?"):
        with pytest.raises(MedContextError, match="No patient") as error:
            patients_of(cases, pattern)
        assert error.value.found == cases[0]
    with pytest.raises(MedContextError, match="no regular expression"):
        patients_of(cases, "(")


def test_sunnybrook_in_folds_by_patient_and_diagnosis(real_scans):
    """30 patients of four diagnoses, each scanned in two phases."""
    cases = open_dataset(real_scans / "Sunnybrook_LV_png").cases
    patients = patients_of(cases, r"(.+)_phase")
    strata = patients_of(cases, r"SC-(HF-I|HF-NI|HYP|N)-")
    assert (len(cases), len(set(patients.values())), len(set(strata.values()))) == (60, 30, 4)
    splits = make_folds(patients, folds=5, validation_share=0.1, seed=0, strata=strata)
    for split in splits:
        require_partition(split, patients)
        assert [len(part) for part in parts(split)] == [44, 4, 12]
        assert set(count_strata(split.test, patients, strata)) == set(strata.values())
    split = make_split(cases, test_share=0.2, validation_share=0.1, seed=0, patient=patients, strata=strata)
    assert isinstance(split, Split)
    assert set(count_strata(split.test, patients, strata)) == set(strata.values())


def test_hippocampus_is_split_160_to_40():
    split = make_split(map(str, range(200)), test_share=0.2, validation_share=0.1, seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (144, 16, 40)
