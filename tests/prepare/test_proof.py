"""That a tiling surely agrees as well as another is proved with the confidence that is said, and not much later than it
could be."""

import numpy as np
import pytest

from unet_engine.prepare.proof import spare

VOXELS = 10**7
"""Of a region: so many that errors are as good as real numbers."""


def counts(errors):
    """Of regions with these parts of their voxels wrong, half of them of each label."""
    wrong = np.rint(np.asarray(errors) * VOXELS / 2).astype(np.int64)
    right = VOXELS // 2 - wrong
    return np.stack([np.stack([right, wrong], -1), np.stack([wrong, right], -1)], 1)


UNEVEN = np.array([2e-4, 4e-4, 5e-4, 3e-4, 2e-3, 8e-4, 3e-2, 6e-4])
"""Most of what is wrong lies in one region, as where a network sees farther than its windows."""


def test_what_is_better_in_every_region_is_proof_however_uneven_they_are():
    """What it has more varies as the errors do: by that alone it took far more regions."""
    varied = np.array([0.08, 0.12, 0.1, 0.05, 0.15, 0.1, 0.09, 0.11])
    assert spare(counts(UNEVEN * varied), counts(UNEVEN)) >= 0
    varied[0] = 1.5  # or in all but one, where there are few errors
    assert spare(counts(UNEVEN * varied), counts(UNEVEN)) >= 0


def test_the_network_that_sees_farther_than_its_windows():
    """Errors as they were counted on EM: windows of 128 that keep 32 off their border, and the habit's of 64."""
    ours = [0.000702, 0.0, 0.000153, 0.000122, 0.000244, 0.000122, 0.000244, 0.000549]
    habit = [0.000366, 0.024139, 0.002136, 0.002014, 0.000946, 0.000366, 0.006134, 0.00354]
    assert spare(counts(ours), counts(habit)) >= 0
    assert spare(counts(habit), counts(ours)) < 0


def test_tilings_without_errors_or_with_the_same_pass():
    assert spare(counts(0 * UNEVEN), counts(UNEVEN)) >= 0
    assert spare(counts(UNEVEN), counts(UNEVEN)) == 0
    assert spare(counts(UNEVEN), counts(0 * UNEVEN)) < 0


@pytest.mark.parametrize(
    "part",
    [
        np.full(8, 1.5),
        np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 3.0, 0.1]),  # worse where most errors are
        np.array([0.5, 2.0, 0.7, 1.6, 0.6, 1.3, 0.9, 0.8]),
    ],
)
def test_what_is_worse_or_only_may_be_better_is_not_proved(part):
    assert spare(counts(UNEVEN * part), counts(UNEVEN)) < 0


def test_few_regions_prove_little():
    """Of four, one way of sixteen to swap gives as much: no proof."""
    assert spare(counts(UNEVEN[4:] / 10), counts(UNEVEN[4:])) < 0
    assert spare(counts(UNEVEN[:1] / 10), counts(UNEVEN[:1])) == -np.inf


def test_a_label_that_is_worse_is_not_hidden_by_the_others():
    """Better in every region in agreement and in two labels, and worse in the third, which is rare."""
    one, other = np.zeros((8, 3, 3), np.int64), np.zeros((8, 3, 3), np.int64)
    for k in range(8):
        other[k] = [[10**6, 900 * (k + 1), 0], [800 * (k + 1), 10**6, 0], [0, 0, 300]]
        one[k] = [[10**6, 90 * (k + 1), 0], [80 * (k + 1), 10**6, 0], [0, 60, 240]]
    assert spare(one, other) < 0
    one[:, 2] = other[:, 2]
    assert spare(one, other) >= 0


@pytest.mark.parametrize(("regions", "uneven", "alike"), [(6, 0.5, 0.0), (8, 2.0, 0.9), (12, 1.0, 0.5)])
def test_tilings_that_are_alike_pass_in_one_case_of_twenty_or_fewer(regions, uneven, alike):
    """Errors of both are lognormal, drawn alike; `alike`: what both have of a region in common."""
    random = np.random.default_rng(0)
    cases, passed = 300, 0
    for _ in range(cases):
        common = random.standard_normal(regions)
        ours, theirs = (
            1e-4 * np.exp(uneven * (np.sqrt(alike) * common + np.sqrt(1 - alike) * random.standard_normal(regions)))
            for _ in range(2)
        )
        passed += spare(counts(ours), counts(theirs)) >= 0
    deviation = np.sqrt(0.05 * 0.95 / cases)
    assert passed / cases < 0.05 + 2 * deviation


def test_beside_a_figure_only_the_bound_counts():
    spread = UNEVEN.std(ddof=1) / np.sqrt(8)
    assert spare(counts(UNEVEN), 0.9) == pytest.approx(0.1 - float(UNEVEN.mean()) - 1.895 * spread, abs=1e-5)
