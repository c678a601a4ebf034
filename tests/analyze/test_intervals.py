import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuronprof.analyze import intervals, sweep

SIZE = 40
sets = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 12)), max_size=12)


def of(drawn):
    """'..aa.b' as starts and ends of the runs of letters."""
    starts = [i for i, c in enumerate(drawn) if c != "." and (i == 0 or drawn[i - 1] != c)]
    ends = [i + 1 for i, c in enumerate(drawn) if c != "." and (i + 1 == len(drawn) or drawn[i + 1] != c)]
    return np.array(starts, np.int64), np.array(ends, np.int64)


def pairs(starts, ends, *more):
    return list(zip(starts.tolist(), ends.tolist(), *(m.tolist() for m in more), strict=True))


def arrays(drawn):
    starts = np.array([s for s, _ in drawn], np.int64)
    return starts, starts + np.array([n for _, n in drawn], np.int64)


def instants(starts, ends):
    """The set of instants that intervals cover, one by one: the plain form that the fast ones are compared with."""
    return {t for s, e in pairs(starts, ends) for t in range(s, e)}


def test_merge_joins_what_overlaps_or_touches():
    # ..aaa....
    # ....bb...   touches c: one interval from 2 to 8; d stands alone; the empty one vanishes
    # ......cc.d
    starts, ends = np.array([9, 6, 4, 2, 5]), np.array([10, 8, 6, 5, 5])
    assert pairs(*intervals.merge(starts, ends)) == [(2, 8), (9, 10)]
    assert intervals.length(starts, ends) == 7


def test_gaps_of_a_window():
    assert pairs(*intervals.gaps(*of(".aa..b..cc"), 0, 10)) == [(0, 1), (3, 5), (6, 8)]
    assert pairs(*intervals.gaps(*of(".aa..b..cc"), 2, 7)) == [(3, 5), (6, 7)]
    assert pairs(*intervals.gaps(*of("......"), 2, 4)) == [(2, 4)]


def test_intersect_names_both_rows():
    # first   aaaa..bbb.    row 0: 0-4, row 1: 6-9
    # second  ..cccccc.d    row 0: 2-8, row 1: 9-10
    assert pairs(*intervals.intersect(*of("aaaa..bbb."), *of("..cccccc.d"))) == [(2, 4, 0, 0), (6, 8, 1, 0)]


def test_subtract_keeps_the_row():
    assert pairs(*intervals.subtract(*of("aaaaaa.bbb"), *of("..cc...c.."))) == [(0, 2, 0), (4, 6, 0), (8, 10, 1)]


def test_partition_gives_an_instant_to_what_started_first():
    # row 0  ....aaaa    from 5 on, when row 1 has ended
    # row 1  .bbbb...
    # row 2  ..cc....    inside row 1: nothing
    starts, ends = np.array([4, 1, 2]), np.array([8, 5, 4])
    assert pairs(*intervals.partition(starts, ends)) == [(1, 5, 1), (5, 8, 0)]


def test_union_by_key():
    # key 0  aaa.....  and ..bbb...: 5;  key 1: nothing;  key 2  .....ccc: 3
    starts, ends = np.array([0, 5, 2]), np.array([3, 8, 5])
    assert intervals.union_by(np.array([0, 2, 0]), starts, ends, 3).tolist() == [5, 0, 3]


def test_union_by_key_of_long_times_and_many_keys():
    # 1,000 keys times 10^17 ns would overflow if keys were laid one after the other
    keys = np.arange(1000)
    assert intervals.union_by(keys, keys * 10**14, keys * 10**14 + 7, 1000).tolist() == [7] * 1000


@given(sets, sets)
def test_sets_of_instants(first, second):
    a, b = intervals.merge(*arrays(first)), intervals.merge(*arrays(second))
    assert instants(*a) == instants(*arrays(first))
    assert instants(*intervals.intersect(*a, *b)[:2]) == instants(*a) & instants(*b)
    assert instants(*intervals.subtract(*a, *b)[:2]) == instants(*a) - instants(*b)
    assert instants(*intervals.gaps(*a, 3, 30)) == set(range(3, 30)) - instants(*a)
    assert intervals.covered(*arrays(first), *b).tolist() == [
        len(set(range(s, e)) & instants(*b)) for s, e in pairs(*arrays(first))
    ]


@given(sets)
def test_a_partition_is_the_union_in_disjoint_pieces(drawn):
    starts, ends = arrays(drawn)
    low, high, row = intervals.partition(starts, ends)
    assert instants(low, high) == instants(starts, ends)
    assert (high - low).sum() == intervals.length(starts, ends)
    assert all(starts[r] <= s and e <= ends[r] for s, e, r in pairs(low, high, row))


@given(sets)
def test_compiled_loops_find_what_is_covered_and_what_is_left(drawn):
    # inside [3, 30); the loops take intervals in the order of their starts
    starts, ends = (times[np.argsort(arrays(drawn)[0], kind="stable")] for times in arrays(drawn))
    low, high = np.clip(starts, 3, 30), np.clip(ends, 3, 30)
    expected = [tuple(gap) for gap in np.transpose(intervals.gaps(*intervals.merge(low, high), 3, 30)).tolist()]
    first = [next((row for row, start in enumerate(low) if start == end != 30), -1) for _, end in expected]
    assert pairs(*sweep.gaps(low, high, 3, 30)) == [(*gap, row) for gap, row in zip(expected, first, strict=True)]
    runs = np.array([0, len(starts) // 2]), np.array([len(starts) // 2, len(starts)])
    assert sweep.union(*runs, starts, ends - starts, 3, 30) == (intervals.length(low, high), True)
    assert not sweep.union(np.array([0]), np.array([2]), np.array([5, 4]), np.array([1, 1]), 3, 30)[1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, SIZE), st.integers(0, 12)), max_size=12))
def test_union_by_is_the_length_of_each_key(drawn):
    keys = np.array([k for k, _, _ in drawn], np.int64)
    starts, ends = arrays([(s, n) for _, s, n in drawn])
    expected = [intervals.length(starts[keys == k], ends[keys == k]) for k in range(4)]
    assert intervals.union_by(keys, starts, ends, 4).tolist() == expected
