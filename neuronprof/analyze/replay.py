"""The recurrence of in-order queues over the graph of a step (see flow): compiled loops over rows, each after all that it waits for.

Arguments that all of them share: ptr, source, why: edges into each row; delay: from a dependency's end to the earliest start; meeting:
number of a row's collective, -1 for none. Times are int64 nanoseconds.
"""

import numpy as np
from numba import njit

from neuronprof.loops import OPTIONS, loop

_EDGES = "int64[::1], int32[::1], int8[::1], int64[::1], int32[::1]"  # ptr, source, why, delay, meeting
_QUEUE, _DATA, _DMA, _SBUF, _HBM, _LINK, _PEER = range(7)  # as in flow


@njit(**OPTIONS)
def _over(edge, source, why, delay, end, free):
    """When an edge lets its row start."""
    kind, row = why[edge], source[edge]
    if kind == _LINK:
        return free[row]
    return end[row] + (delay if kind in (_DATA, _DMA, _SBUF) else 0)


@loop(f"({_EDGES}, int64[::1], int64[::1], int64[::1], int64)")
def lags(ptr, source, why, delay, meeting, start, end, free, begin):
    """What of each row's start the edges leave unexplained; free: when a row leaves its link."""
    n = len(start)
    ready, last = np.full(n, begin, np.int64), np.full(meeting.max() + 1 if n else 0, begin, np.int64)
    for i in range(n):
        for e in range(ptr[i], ptr[i + 1]):
            ready[i] = max(ready[i], _over(e, source, why, delay[i], end, free))
        if meeting[i] >= 0:
            last[meeting[i]] = max(last[meeting[i]], ready[i])
    for i in range(n):
        ready[i] = start[i] - (last[meeting[i]] if meeting[i] >= 0 else ready[i])
    return ready


@loop(f"({_EDGES}, int64[::1], int64[::1], int64[::1], bool_[::1], int64)")
def run(ptr, source, why, delay, meeting, lag, duration, wire, dropped, begin):
    """Runs the rows with these durations.

    wire: how long each holds its link; dropped: bool, kinds of edges that are left out.

    Returns:
        start; arrived: when the row could have started but for its peers; end; by: the row that let it start, -1 for none; the kind of
        that edge; and when the row could have started but for HBM.
    """
    n = len(duration)
    start, end, free, arrived, unserved = np.zeros((5, n), np.int64)
    by, waited = np.full(n, -1, np.int32), np.zeros(n, np.int8)
    meetings = meeting.max() + 1 if n else 0
    left, members = np.zeros(meetings, np.int32), np.full(meetings, -1, np.int32)
    before = np.full(n, -1, np.int32)
    last = np.full(meetings, -1, np.int32)
    for m in meeting[meeting >= 0]:
        left[m] += 1
    for i in range(n):
        ready = own = queued = begin
        for e in range(ptr[i], ptr[i + 1]):
            if dropped[why[e]]:
                continue
            over = _over(e, source, why, delay[i], end, free)
            if why[e] != _PEER:
                own = max(own, over)
            if why[e] != _HBM:
                queued = max(queued, over)
            if over > ready:
                ready, by[i], waited[i] = over, source[e], why[e]
        start[i], arrived[i], unserved[i] = ready + lag[i], own + lag[i], queued + lag[i]
        m = meeting[i]
        if m < 0 or dropped[_PEER]:
            end[i] = start[i] + duration[i]
            free[i] = start[i] + wire[i]
            continue
        left[m] -= 1
        before[i], members[m] = members[m], i
        if last[m] < 0 or start[i] > start[last[m]]:
            last[m] = i
        if left[m] == 0:
            latest, releaser, j = start[last[m]], by[last[m]], i
            while j >= 0:
                if latest > start[j]:
                    by[j], waited[j] = releaser, _PEER
                start[j] = latest
                end[j], free[j] = latest + duration[j], latest + wire[j]
                j = before[j]
    return start, arrived, end, by, waited, unserved


@loop(f"({_EDGES}, int64[::1], int64[::1], int64[::1], int64[::1], int64)")
def slack(ptr, source, why, delay, meeting, lag, start, end, free, until):
    """By how much each row could end later without making anything end after `until`."""
    n = len(start)
    latest = np.full(n, until, np.int64)
    meetings = meeting.max() + 1 if n else 0
    together, left = np.full(meetings, until, np.int64), np.zeros(meetings, np.int32)
    members, before = np.full(meetings, -1, np.int32), np.full(n, -1, np.int32)
    for i in range(n):
        if meeting[i] >= 0:
            left[meeting[i]] += 1
    for i in range(n - 1, -1, -1):
        begun = latest[i] - (end[i] - start[i])
        m = meeting[i]
        if m < 0:
            _allow(i, begun - lag[i], ptr, source, why, delay[i], end, free, latest)
            continue
        together[m] = min(together[m], begun)
        left[m] -= 1
        before[i], members[m] = members[m], i
        if left[m] == 0:
            j = i
            while j >= 0:
                latest[j] = min(latest[j], together[m] + end[j] - start[j])
                _allow(j, together[m] - lag[j], ptr, source, why, delay[j], end, free, latest)
                j = before[j]
    return latest - end


@njit(**OPTIONS)
def _allow(i, ready, ptr, source, why, delay, end, free, latest):
    """Bounds the ends of what row i waits for by the moment when it has to be ready."""
    for e in range(ptr[i], ptr[i + 1]):
        row = source[e]
        late = ready - (_over(e, source, why, delay, end, free) - end[row])
        latest[row] = min(latest[row], late)


@loop("(int32[::1], int64)")
def chain(by, last):
    """The rows from the first to `last`, each of which let the next one start."""
    count, row = 0, last
    while row >= 0:
        count += 1
        row = by[row] if by[row] < row else -1
    rows, row = np.empty(count, np.int64), last
    for k in range(count - 1, -1, -1):
        rows[k] = row
        row = by[row]
    return rows
