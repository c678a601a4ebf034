"""Places a graph on a mesh of ranks: `plan(graph, Layout(tp=8, pp=4, microbatches=32))`."""

from neuronprof.distribute.layout import Layout
from neuronprof.distribute.plan import Plan, Planner, StagePlan, plan

__all__ = ["Layout", "Plan", "Planner", "StagePlan", "plan"]
