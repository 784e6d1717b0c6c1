"""Scans that are in a data set twice, however they were named, stored or compressed."""

from __future__ import annotations

from collections.abc import Iterable

from medcontext.data.examine import Examined, Member
from medcontext.data.findings import Finding, Severity
from medcontext.errors import MedContextError

Pair = tuple[Member, Examined]


def duplicate_findings(examined: Iterable[Pair]) -> list[Finding]:
    """Images that share a channel with an earlier one, and label maps that are the same for different images.

    Training cases come before test images; the finding is about the later of the two. The same scan as two patients,
    or to train and to test on, is an error: a split would hold out what it trains on. As one patient, or among test
    images alone, it is a warning.
    """
    ordered = sorted(examined, key=lambda pair: (pair[0].role == "test", pair[0].name))
    findings = []
    channels: dict[str, tuple[Pair, int]] = {}
    maps: dict[str, Pair] = {}
    for pair in ordered:
        shared: dict[int, Pair] = {}
        for channel, digest in enumerate(pair[1].image_hashes):
            if digest is None:
                continue
            first, place = channels.setdefault(digest, (pair, channel))
            if first is not pair:
                shared.setdefault(id(first), first)
            elif place != channel:
                findings.append(_same_channels(pair[0], place, channel))
        findings += [_same_scan(first, pair) for first in shared.values()]
        if pair[1].label_hash is not None:
            first = maps.setdefault(pair[1].label_hash, pair)
            if first is not pair and id(first) not in shared:
                findings.append(_same_label(first[0], pair[0]))
    return findings


def _same_scan(first: Pair, second: Pair) -> Finding:
    (one, seen), (other, seen_too) = first, second
    severity: Severity = "error"
    if other.role == "test" == one.role or (other.role == one.role and one.patient == other.patient):
        severity = "warning"
    if other.role != one.role:
        problem = "A test image is also trained on."
        remedy = "remove it from the test images, or the case from training: its score would not be a held-out one"
    else:
        problem = "The same scan is there twice."
        remedy = "remove one of them; if both are meant, list the cases in cases.csv and give both the same patient"
    different = None not in (one.label, other.label) and seen.label_hash != seen_too.label_hash
    whole = seen.image_hashes == seen_too.image_hashes
    return Finding(
        severity,
        other.name,
        MedContextError(
            problem,
            file=other.images[0],
            found=f"{'the' if whole else 'in a channel, the'} same voxels as {one.images[0]}"
            + (", with other labels" if different else ""),
            expected="every scan once",
            remedy=remedy,
        ),
    )


def _same_channels(member: Member, first: int, second: int) -> Finding:
    return Finding(
        "warning",
        member.name,
        MedContextError(
            "Two channels of this image are the same.",
            file=member.images[second] if second < len(member.images) else member.images[0],
            found=f"channel {second} has the same voxels as channel {first}",
            expected="a different image in every channel",
            remedy="export the channels again; one was probably copied over another",
        ),
    )


def _same_label(first: Member, second: Member) -> Finding:
    return Finding(
        "warning",
        second.name,
        MedContextError(
            "Two images have the same label map.",
            file=second.label,
            found=f"the same voxels as {first.label}, and another image",
            expected="a label map of its own for every image",
            remedy="see which of the two images it was drawn on, and find the other's label map",
        ),
    )
