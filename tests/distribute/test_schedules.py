"""Schedules as their papers draw them: a letter a pass, then the micro-batch; a prime marks the second virtual stage."""

import pytest

from neuronprof.distribute.schedules import Pass, schedule


def drawn(name, stages, stage, microbatches, virtual=1):
    actions = schedule(name, stages, stage, microbatches, virtual)
    return " ".join(f"{a.kind.value}{a.microbatch}{chr(39) * a.virtual}" for a in actions)


@pytest.mark.parametrize(
    ("name", "stage", "picture"),
    [
        ("gpipe", 0, "F0 F1 F2 F3 B0 B1 B2 B3"),
        ("1f1b", 0, "F0 F1 F2 B0 F3 B1 B2 B3"),
        ("1f1b", 1, "F0 F1 B0 F2 B1 F3 B2 B3"),
        ("1f1b", 2, "F0 B0 F1 B1 F2 B2 F3 B3"),
        # The last stage puts off two micro-batches' weights: it would stand idle after its last backward.
        ("zero-bubble", 0, "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3"),
        ("zero-bubble", 2, "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"),
    ],
)
def test_three_stages_and_four_micro_batches(name, stage, picture):
    assert drawn(name, 3, stage, 4) == picture


def test_interleaved_as_megatron_runs_it():
    # Two stages with two virtual ones each: groups of two micro-batches go through one virtual stage after the other. The first stage
    # warms up with 2 x 1 + 2 forward passes, the last one with 2.
    assert drawn("interleaved", 2, 0, 4, 2) == "F0 F1 F0' F1' F2 B0' F3 B1' F2' B0 F3' B1 B2' B3' B2 B3"
    assert drawn("interleaved", 2, 1, 4, 2) == "F0 F1 F0' B0' F1' B1' F2 B0 F3 B1 F2' B2' F3' B3' B2 B3"


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("virtual", [2, 3])
def test_interleaved_runs_each_pass_once_for_every_number_of_micro_batches(groups, virtual):
    stages, microbatches = 4, 4 * groups
    for stage in range(stages):
        found = [
            (a.kind, a.microbatch, a.virtual) for a in schedule("interleaved", stages, stage, microbatches, virtual)
        ]
        assert sorted(found, key=str) == sorted(
            [
                (kind, m, v)
                for kind in (Pass.FORWARD, Pass.BACKWARD)
                for m in range(microbatches)
                for v in range(virtual)
            ],
            key=str,
        )
