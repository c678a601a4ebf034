"""Semaphores: a picture of three queues and the complete tables."""

import picture

from neuronprof.analyze.registry import find
from neuronprof.analyze.walk import Whole


def test_who_waits_for_whose_count(trace):
    #   dma     aabb....   a and b are loaded
    #   tensor  ..cccdd.   c needs a and stands until 2; d needs b, which is there before c has made way
    #   vector  .....e.f   e needs c and stands from the start until 5, f needs d and stands from 6 to 7
    drawn = """
    dma    aabb....
    tensor ..cccdd.
    vector .....e.f
    """
    rows = picture.rows(drawn)
    needs = {2: 0, 3: 1, 4: 2, 5: 3}  # by id
    waits = {2: (2, "dma", 0), 4: (5, "data", 2), 5: (1, "data", 3)}
    for number, row in enumerate(rows):
        row |= {"id": number, "deps": [number - needs[number]] if number in needs else [], "released_by": -1}
        if number in waits:
            row["wait_ns"], row["wait_for"], row["released_by"] = waits[number]
    whole = Whole(trace(rows, [picture.segment(0, 8)]))
    tables = find("semaphores").answer(whole)
    assert picture.table(tables["semaphores"]) == [
        "queue semaphore waits stood waited_ns longest_ns",
        "vector[0] tensor[0] 2 2 6 5",
        "tensor[0] dma[0] 2 1 2 2",
    ]
    assert picture.table(tables["semaphore_waits"]) == [
        "rank id queue name op_name layer start_ts wait_ns semaphore count",
        "0 4 vector[0] TENSOR_TENSOR e '' 5 5 tensor[0] 1",
        "0 2 tensor[0] MATMUL c '' 2 2 dma[0] 1",
        "0 5 vector[0] TENSOR_TENSOR f '' 7 1 tensor[0] 2",
    ]
