"""Steps, evaluation and phases: small scripts, and the segments they must give."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from neuronprof.capture.engine import Engine
from neuronprof.capture.steps import Pass, Steps, period
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Recording
from neuronprof.terms import PHASES

X, Y = torch.randn(8, 4), torch.randint(0, 3, (8,))


@pytest.mark.parametrize(
    ("keys", "length"),
    [("", 1), ("A", 1), ("AAA", 1), ("AB", 2), ("ABAB", 2), ("ABA", 2), ("AAAB", 4), ("AAABAAAB", 4), ("AABAAC", 6)],
)
def test_period(keys: str, length: int) -> None:
    assert period(keys) == length


def test_ends_by_the_optimizers_period() -> None:
    # two critic updates, one generator update: a step ends with every third event
    steps = Steps(updates=[(10, "c"), (20, "c"), (30, "g"), (40, "c"), (50, "c"), (60, "g"), (70, "c")])
    assert steps.ends(75) == [30, 60]


def test_an_optimizer_that_was_made_is_waited_for() -> None:
    steps = Steps(updates=[(10, "c"), (20, "c")], optimizers={"c", "g"}, used={"c"})
    assert (
        steps.count() == 0
    )  # it may be two thirds of a step, or two steps: nobody knows before the generator has stepped
    steps.updates.append((30, "g"))
    steps.used.add("g")
    assert steps.count() == 1


def test_updates_without_a_period_end_with_the_rarest_optimizer() -> None:
    # the generator steps after 1, 2, ..., 12 updates of the critic: 90 events that never repeat
    keys = [key for n in range(1, 13) for key in ["c"] * n + ["g"]]
    steps = Steps(updates=list(enumerate(keys, 1)))
    assert len(steps.ends(200)) == 12


def test_marks_override_and_may_stand_at_the_start() -> None:
    assert Steps(marks=[7, 14], updates=[(5, "a")]).ends(20) == [7, 14]
    assert Steps(marks=[0, 7, 14]).ends(20) == [7, 14, 20]


def test_inference_is_a_step_a_forward() -> None:
    passes = [Pass(start, 1, False, False, start + 4) for start in (0, 10, 20)]
    assert Steps(passes=passes).ends(30) == [4, 14, 24]
    # after a backward the forwards are not inference: a step lasts until the next forward
    assert Steps(passes=passes, backward_seen=True).ends(30) == [10, 20, 30]


# --- scripts


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def learn(m: nn.Module) -> None:
    F.cross_entropy(m(X), Y).backward()


def record(script: Callable[[Engine], None], steps: int = 3, warmup: int = 1) -> Recording:
    engine = Engine("real")
    with engine:
        script(engine)
    return engine.finish(steps, warmup)


def kinds(recording: Recording) -> list[tuple[str, int]]:
    assert [s.start for s in recording.segments[1:]] == [s.stop for s in recording.segments[:-1]]
    assert (recording.segments[0].start, recording.segments[-1].stop) == (0, len(recording.graph))
    return [(s.kind, s.step) for s in recording.segments]


def phases(recording: Recording, segment: int) -> dict[str, int]:
    s = recording.segments[segment]
    return dict(Counter(str(PHASES[p]) for p in recording.graph.phase[s.start : s.stop]))


def names(recording: Recording, segment: int, phase: str) -> list[str]:
    graph, s = recording.graph, recording.segments[segment]
    ops = [op for op in range(s.start, s.stop) if PHASES[graph.phase[op]] == phase]
    return [graph.signatures[graph.signature[op]].name.split(".")[1] for op in ops]


def test_warm_up_and_limit() -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(6):
            learn(m)
            optimizer.step()
            optimizer.zero_grad()

    assert kinds(record(script, steps=3, warmup=2)) == [("step", 0), ("step", 1), ("step", 2)]
    assert kinds(record(script, steps=9, warmup=5)) == [("step", 0)]
    assert len(record(script, steps=9, warmup=6).segments) == 6  # no later ones: what there is is kept


def test_recording_pauses_when_it_has_enough() -> None:
    def run(total: int) -> tuple[int, list[int]]:
        engine, told = Engine("real"), []
        engine.stop_after, engine.on_complete = 2, lambda: told.append(engine.recorded_steps)
        with engine:
            m = model()
            optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
            for _ in range(total):
                learn(m)
                optimizer.step()
        return len(engine.tape.recorder), told

    assert run(2) == run(5)  # as many operators, and told once
    assert run(5)[1] == [2]


def test_evaluation_stands_between_the_steps() -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(3):
            m.train()
            learn(m)
            optimizer.step()
            optimizer.zero_grad()
            m.eval()
            with torch.no_grad():
                (m(X + 1).argmax(1) == Y).sum().item()

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("evaluation", -1), ("step", 1)]
    # X + 1, then t, addmm, relu, t, addmm, then argmax, eq, sum, item
    assert phases(recording, 1) == {"evaluation": 10}
    assert "evaluation" not in {**phases(recording, 0), **phases(recording, 2)}


def test_a_forward_without_gradients_that_the_step_uses_is_no_evaluation() -> None:
    def script(engine: Engine) -> None:
        teacher, m = model().eval(), model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                target = teacher(X)
            F.mse_loss(m(X), target).backward()
            optimizer.step()

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert "evaluation" not in phases(recording, 1)


def test_a_long_validation_is_cut_and_counted() -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            learn(m)
            optimizer.step()
            with torch.no_grad():
                for _ in range(100):
                    m(X)

    recording = record(script, warmup=0)
    assert kinds(recording) == [("step", 0), ("evaluation", -1), ("step", 1)]
    assert phases(recording, 1) == {"evaluation": 64 * 5}
    assert sum(recording.notes.values()) == 2 * 36


def test_gradient_accumulation_is_one_step() -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for i in range(6):
            learn(m)
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert names(recording, 0, "forward").count("nll_loss_forward") == 2


def test_gan_is_one_step_for_both_optimizers() -> None:
    def script(engine: Engine) -> None:
        generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
        first = torch.optim.SGD(critic.parameters(), lr=0.1)
        second = torch.optim.SGD(generator.parameters(), lr=0.1)
        for _ in range(3):
            fake = generator(torch.randn(8, 2))
            (critic(fake.detach()).mean() - critic(X).mean()).backward()
            first.step()
            (-critic(fake).mean()).backward()
            second.step()

    assert kinds(record(script)) == [("step", 0), ("step", 1)]


def test_parameters_changed_by_hand_end_a_step() -> None:
    def script(engine: Engine) -> None:
        weight = torch.randn(4, 3, requires_grad=True)
        bias = torch.zeros(3, requires_grad=True)
        for _ in range(3):
            F.cross_entropy(X @ weight + bias, Y).backward()
            with torch.no_grad():
                for p in (weight, bias):
                    p -= 0.1 * p.grad
                    p.grad = None

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert names(recording, 0, "optimizer") == ["mul", "sub_", "mul", "sub_"]
    assert recording.parameters == 15


def test_data_attribute_of_parameters_changed_by_hand() -> None:
    def script(engine: Engine) -> None:
        m = model()
        for _ in range(3):
            m.zero_grad()
            learn(m)
            for p in m.parameters():
                p.data.add_(p.grad.data, alpha=-0.1)

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert names(recording, 1, "optimizer") == ["detach", "detach", "add_"] * 4


def test_lbfgs_evaluates_its_closure_inside_the_step() -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.LBFGS(m.parameters(), max_iter=2)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(m(X), Y)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    recording = record(script, warmup=0)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    found = phases(recording, 1)
    assert found.keys() == {"forward", "backward", "optimizer"}


def test_inference_mode_is_a_step_a_forward() -> None:
    def script(engine: Engine) -> None:
        m = model().eval()
        with torch.inference_mode():
            for _ in range(3):
                m(X + 1).softmax(-1)

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    # linear is taken apart in inference mode too; the softmax of one pass and the sum before the next belong to the next step
    assert names(recording, 1, "other") == ["_softmax", "add"]
    assert names(recording, 1, "forward") == ["t", "addmm", "relu", "t", "addmm"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_again(reentrant: bool) -> None:
    def script(engine: Engine) -> None:
        m, head = model(), nn.Linear(3, 3)
        optimizer = torch.optim.SGD([*m.parameters(), *head.parameters()], lr=0.1)
        for _ in range(2):
            hidden = checkpoint(m, X.clone().requires_grad_(), use_reentrant=reentrant)
            hidden = checkpoint(lambda t: t.exp().sin(), hidden, use_reentrant=reentrant)
            F.cross_entropy(head(hidden), Y).backward()
            optimizer.step()

    recording = record(script)
    again = names(recording, 0, "recompute")
    # first the plain function's (without reentrance PyTorch stops before the sine, whose result nobody needs), then the module's
    assert [n for n in again if n in ("exp", "relu")] == ["exp", "relu"]
    assert "threshold_backward" in names(recording, 0, "backward")
    graph = recording.graph
    relu = next(
        op for op in range(len(graph)) if graph.signatures[graph.signature[op]].name.startswith("aten.threshold_b")
    )
    assert graph.modules[graph.module[relu]] == "Sequential.1"


def test_marks_and_regions() -> None:
    def script(engine: Engine) -> None:
        m = model()
        for _ in range(3):
            engine.mark_step()
            with engine.region("outer"), engine.region("inner"):
                loss = F.cross_entropy(m(X), Y)
            loss.backward()

    recording = record(script)
    graph = recording.graph
    assert kinds(recording) == [("step", 0), ("step", 1)]
    regions = Counter((str(PHASES[p]), graph.regions[r]) for p, r in zip(graph.phase, graph.region, strict=True))
    # gradients have the region of the operator they belong to; sums and views of AccumulateGrad belong to none
    assert set(regions) >= {("forward", "outer/inner"), ("backward", "outer/inner")}
    assert regions["forward", ""] == 2  # in each step the one that starts the backward


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loading_is_not_the_devices_work(workers: int) -> None:
    def script(engine: Engine) -> None:
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        data = TensorDataset(torch.randn(24, 4), torch.randint(0, 3, (24,)))
        for x, y in DataLoader(data, 8, shuffle=True, num_workers=workers):
            F.cross_entropy(m(x), y).backward()
            optimizer.step()

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert phases(recording, 0).keys() == {"forward", "backward", "optimizer"}


def test_average_of_the_weights_is_part_of_the_step() -> None:
    def script(engine: Engine) -> None:
        m = model()
        average = copy.deepcopy(m)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(3):
            learn(m)
            optimizer.step()
            with torch.no_grad():
                for a, b in zip(average.parameters(), m.parameters(), strict=True):
                    a.lerp_(b, 0.1)

    recording = record(script)
    assert kinds(recording) == [("step", 0), ("step", 1)]
    assert names(recording, 1, "other").count("lerp_") == 4


def test_nothing_to_record() -> None:
    with pytest.raises(NeuronprofError, match="No training step was found"):
        record(lambda engine: X.sum())
