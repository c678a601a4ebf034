"""What to change first: rules that look at a step, each with the change it proposes and what that change would give.

case.py is what rules look at, rule.py what a rule is, wording.py how a change is said for a framework; the rules stand by theme in host.py,
compute.py, memory.py, onchip.py, communication.py, pipeline.py and ranks.py; rules.py lists them, walk.py ranks what they find.
"""
