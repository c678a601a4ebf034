"""DMA transfers: a small trace and its complete tables."""

import picture

from neuronprof.analyze.passes import run
from neuronprof.analyze.transfers import Transfers


def found(trace, partitions):
    # HBM 100 B/ns. Pieces of 2048 bytes and two partitions: transfers below 2 * 2048 = 4096 bytes are small.
    #   L  400 bytes in 8 ns, twice: at full bandwidth 4 ns each, so 2 * 4 lost
    #   B  5000 bytes in 60 ns: not small
    #   S  1000 bytes spilled in 11 ns: 1 lost
    #   H  a copy from the host, and E evaluation do not count
    about = {
        "L": {"op_name": "mm", "layer": "fc", "bytes": 400},
        "B": {"op_name": "mm", "layer": "fc", "bytes": 5000},
        "S": {"op_name": "softmax", "name": "SPILL_SAVE", "bytes": 1000},
        "H": {"name": "COPY_TO_DEVICE", "bytes": 400},
        "E": {"op_name": "mm", "layer": "fc", "bytes": 400, "step": -1},
    }
    drawn = "dma " + "L" * 8 + "." + "L" * 8 + "B" * 60 + "S" * 11 + "HE"
    quantities = {"memory.partitions": partitions, "dma.efficient": 2048}
    machine = {
        "rank": picture.MACHINE,
        "quantities": {name: {"value": value} for name, value in quantities.items()} if partitions else {},
    }
    segments = [picture.segment(0, 89), picture.segment(89, 90, -1)]
    tables = run(trace(picture.rows(drawn, about), segments, machine=machine), [Transfers()])["transfers"]
    return {name: picture.table(table) for name, table in tables.items()}


def test_transfers(trace):
    assert found(trace, 2) == {
        "transfers": [
            "name op_name layer phase source transfers bytes time_ns small small_bytes lost_ns share",
            "DMA_LOAD mm fc '' '' 3 5800 76 2 800 8 0.8736",
            "SPILL_SAVE softmax '' '' '' 1 1000 11 1 1000 1 0.1264",
        ],
        "transfers_by_opcode": [
            "name transfers bytes time_ns small small_bytes lost_ns share",
            "DMA_LOAD 3 5800 76 2 800 8 0.8736",
            "SPILL_SAVE 1 1000 11 1 1000 1 0.1264",
        ],
    }


def test_nothing_is_small_on_an_unknown_machine(trace):
    rows = found(trace, None)["transfers_by_opcode"]
    assert rows[1:] == ["DMA_LOAD 3 5800 76 0 0 0 0.8736", "SPILL_SAVE 1 1000 11 0 0 0 0.1264"]
