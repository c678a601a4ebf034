"""How well work fits its engine: small traces and their complete tables."""

import picture

from neuronprof.analyze.movable import Movable
from neuronprof.analyze.passes import run
from neuronprof.analyze.pearray import PeArray


def machine(**numbers):
    return {
        "rank": picture.MACHINE,
        "quantities": {name.replace("__", "."): {"value": v} for name, v in numbers.items()},
    }


def test_pe_array(trace):
    # An array of 4 x 4 PEs. a: 2 of 4 rows of it, so half of its 10 ns is for nothing, twice. b: 2 columns moving where an instruction
    # takes 4 cycles: half again; and cold all the time at half the speed, so 3 of its 6 ns. c is no product.
    tensor = {
        "tensor__rows": 4,
        "tensor__columns": 4,
        "tensor__interval_min": 4,
        "tensor__weight_load": 1,
        "tensor__moving_max": 8,
    }
    about = {
        "a": {"op_name": "mm", "layer": "up", "operands": "matmul batch=1 M=4 K=2 N=8 itemsize=2"},
        "b": {"op_name": "mm", "layer": "down", "operands": "matmul_cold arrays=1 M=4 K=4 N=2 cold=1 itemsize=2"},
        "c": {"op_name": "add", "operands": "vector elements=4 passes=1 itemsize=2"},
    }
    rows = picture.rows("tensor aaaaaaaaaa.aaaaaaaaaabbbbbb\nvector cccc", about)
    opened = trace(rows, [picture.segment(0, 27)], machine=machine(**tensor, tensor__cold_speed=0.5))
    assert picture.table(run(opened, [PeArray()])["pe_array"]["pe_array"]) == [
        "op_name layer phase source products time_ns unfilled_ns throttled_ns fill share operands",
        "mm up '' '' 2 20 10 0 0.5 0.7692 matmul batch=1 M=4 K=2 N=8 itemsize=2",
        "mm down '' '' 1 6 3 3 0.5 0.2308 matmul_cold arrays=1 M=4 K=4 N=2 cold=1 itemsize=2",
    ]


def test_movable(trace):
    # The vector engine does an element a nanosecond, the scalar engine one in two, gpsimd one in ten. a: 4 ns here, 8 on the scalar
    # engine, which is idle for 10 of the 12 ns; gpsimd would take 40. b, of two tensors, is nothing for the scalar engine, and takes
    # gpsimd 20. c has a function's table, which only the scalar engine has.
    about = {
        "a": {"op_name": "mul", "name": "TENSOR_SCALAR", "operands": "vector elements=4 passes=1 itemsize=2"},
        "b": {"op_name": "add", "name": "TENSOR_TENSOR", "operands": "vector elements=2 passes=1 itemsize=2"},
        "c": {"op_name": "exp", "operands": "scalar elements=1 passes=1 itemsize=2"},
    }
    clocks = {"vector__clock": 1e9, "scalar__clock": 0.5e9, "gpsimd__clock": 0.1e9}
    kept = {"formulas": {"vector": {"text": "seconds = elements / vector.clock"}}, "given": {}}
    rows = picture.rows("vector aaaabb......\nscalar ..........cc", about)
    opened = trace(rows, [picture.segment(0, 12)], machine=machine(**clocks), **kept)
    assert picture.table(run(opened, [Movable()])["movable"]["movable"]) == [
        "engine to op_name layer phase source instructions time_ns there_ns idle_ns",
        "vector scalar mul '' '' '' 1 4 8 10",
    ]


def test_nothing_fits_where_the_trace_tells_no_machine(trace):
    opened = trace(picture.rows("tensor aa\nvector .bb"), [picture.segment(0, 3)])
    found = run(opened, [PeArray(), Movable()])
    assert found["pe_array"]["pe_array"].empty
    assert found["movable"]["movable"].empty
