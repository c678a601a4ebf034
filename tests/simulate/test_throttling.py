"""The PE array works at half of its speed for 3 us after idling: one cycle is one nanosecond on the toy chip."""

from dataclasses import replace

import pytest
import toys

from neuronprof.compile.builder import ProgramBuilder
from neuronprof.program import Opcode, Queue
from neuronprof.simulate.cluster import Cluster
from neuronprof.simulate.fleet import fleet
from neuronprof.simulate.job import Job
from neuronprof.simulate.throttling import throttled

MOVE = (1, 128, 128, 512)  # 512 ns


def job(**engine):
    chip = toys.chip(tensor=replace(toys.chip().tensor, **{"cold_time": 3e-6, "cold_speed": 0.5, **engine}))
    return Job(chip, 1, 1)


def durations(builder, where):
    """Nanoseconds of each MATMUL."""
    program = builder.finish([], {})
    timing = Cluster(where).run([program]).timing(0)
    took = (timing.end - timing.start) / 1000
    return took[program.opcode == Opcode.MATMUL_TILE].tolist()


def moves(builder, count, after=()):
    for i in range(count):
        builder.add(Opcode.MATMUL_TILE, Queue.TENSOR, 0, MOVE, dtype="bfloat16", data=after if i == 0 else ())


def test_the_first_three_microseconds_are_slow():
    builder = ProgramBuilder()
    moves(builder, 5)
    # 1024 and 1024 ns; 952 ns are left, in which the third does 476 ns of its work, and then the other 36.
    assert durations(builder, job()) == [1024, 1024, 988, 512, 512]


def test_idling_begins_it_anew():
    def after(nbytes):
        """A host copy at 10 GB/s between two rows of MATMULs."""
        builder = ProgramBuilder()
        moves(builder, 5)
        copied = builder.add(Opcode.COPY_TO_DEVICE, Queue.DMA_HOST, 0, (nbytes, nbytes, 0, 0), data=[4])
        moves(builder, 2, [copied])
        return durations(builder, job())[5:]

    # After 2 us the array was busy for 1 of the last 3 us and is cold, after 1 us for 2 of them.
    assert after(20_000) == [1024, 1024]
    assert after(10_000) == [512, 512]


def test_a_machine_without_it_loses_nothing():
    builder = ProgramBuilder()
    moves(builder, 2)
    where = job(cold_time=0.0, cold_speed=0.0)
    assert durations(builder, where) == [512, 512]
    instructions = fleet([builder.finish([], {})], where)
    assert throttled(instructions, where) is instructions


def test_a_row_of_matmuls_that_stands_for_many_is_not_slowed_but_warms_the_array():
    builder = ProgramBuilder()
    builder.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 128, 128 * 6, 512), dtype="bfloat16")  # 3.072 us
    moves(builder, 2)
    assert durations(builder, job()) == [512, 512]


@pytest.mark.parametrize("speed", [0.25, 0.5])
def test_the_slow_time_does_not_hang_on_the_speed(speed):
    builder = ProgramBuilder()
    moves(builder, 20)
    # In 3 us at this speed 3 us * speed are done: the rest of that time is lost.
    assert sum(durations(builder, job(cold_speed=speed))) == pytest.approx(20 * 512 + 3000 * (1 - speed), abs=0.01)
