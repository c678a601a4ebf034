"""Runs the rules over a step and ranks what they find by what it would give."""

from typing import ClassVar
from urllib.parse import urlencode

from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.rules import RULES
from neuronprof.analyze.analyzer import State
from neuronprof.analyze.walk import Walk, Whole

LEAST = 0.01  # of the step: what gives less is within the error that what-if runs are held to
_MARGIN = 0.05  # of what a link shows, on each side


class Advice(Walk):
    """What to change first: what is wrong with the median step, how to mend it, and what the step would gain, by running it again so.

    gain_ns, gain: of the step, each change alone; rules that find less than 1 % are silent. confidence: high: the change takes
    away or scales just what the trace shows; medium: its largest side effects are counted; low: a careful guess. start_ns to end_ns:
    where it shows, on the rank that it costs most. link: the end of the address of `neuronprof view` that shows this.
    """

    name: ClassVar[str] = "advice"
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "advice": ("priority", "rule", "wrong", "change", "gain_ns", "gain", "confidence", "step", "chip", "rank",
                   "start_ns", "end_ns", "link")
    }  # fmt: skip

    def answer(self, whole: Whole) -> State:
        """Findings of all rules, the largest gain first."""
        import pandas as pd

        step = whole.sample
        rows = []
        if step is not None and len(step):
            case = Case(step, whole.context, whole.trace.operators)
            chips = dict(zip(step.events["rank"].tolist(), step.events["chip"].tolist(), strict=True))
            for rule in RULES:
                finding = rule.look(case)
                gain = case.gain(finding.mend, finding.remains) if finding else 0.0
                if finding is None or gain < LEAST * case.time:
                    continue
                rank, start, end = case.extent(finding.rows)
                rows.append(
                    (rule.name, finding.wrong, finding.change, round(gain), gain / case.time, str(rule.confidence), step.window.step,
                     chips[rank], rank, start, end, _link(rank, start, end))
                )  # fmt: skip
        columns = self.tables["advice"]
        table = pd.DataFrame(rows, columns=list(columns[1:])).sort_values(
            ["gain_ns", "rule"], ascending=[False, True], ignore_index=True
        )
        table.insert(0, "priority", range(1, len(table) + 1))
        return {"advice": table}


def _link(rank: int, start: int, end: int) -> str:
    """The part of the view's address that tells its state, see view/page.js."""
    margin = max(1, round(_MARGIN * (end - start)))
    return "#" + urlencode(
        {"page": "timeline", "rank": f"0/{rank}", "from": max(0, start - margin), "to": end + margin}
    )
