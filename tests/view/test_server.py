"""The server: what it answers, to whom, and what it says when the trace changes under it."""

import http.client
import json
import threading
import time

import picture
import pytest

from neuronprof.analyze.kept import Kept
from neuronprof.errors import NeuronprofError
from neuronprof.view import page, server


@pytest.fixture
def served(trace, tmp_path, monkeypatch):
    """A running server of a trace of two ranks; asks it questions: ask(path, method, headers, body) gives status and body."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = trace(
        picture.rows("tensor aa..bb\n rank 3\n tensor aaaa", scale=10), [picture.segment(0, 60)], script="train.py"
    )
    kept = Kept(opened)
    running = {}

    def run():
        import asyncio

        asyncio.set_event_loop(asyncio.new_event_loop())
        running["server"] = server.start([kept], page.served([kept]), origins=["tunnel.example:8080"])
        running["server"].io_loop.start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while "server" not in running:
        time.sleep(0.01)
    port = running["server"].port

    def ask(path, method="GET", headers=(), body=None):
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            if answer.status != 202:
                return answer.status, text
            time.sleep(0.05)
        raise AssertionError("the levels of detail were not summed within ten seconds")

    ask.port, ask.path = port, opened.path
    yield ask
    running["server"].io_loop.add_callback(running["server"].io_loop.stop)
    thread.join(10)
    kept.stop()


def test_the_page_and_its_questions(served):
    status, text = served("/")
    assert (status, b"<title>train.py" in text) == (200, True)
    # Rank 3: one event from 0 to 40 of the 60 ns of the step.
    assert json.loads(served("/ask/busy?key=0/3&from=0&to=60")[1]) == [
        {"name": "Tensor", "colour": "#0072b2", "share": "66.7 %", "time": "40 ns"}
    ]
    # The first event of rank 3 was drawn, so that nothing is computed of it.
    assert json.loads(served("/ask/why?key=0/3&id=0")[1]) == (
        "It took 40 ns. Measured, not computed: the\n"
        "trace comes from elsewhere, and no formula\n"
        "of ours stands behind its durations."
    )
    assert served("/ask/nothing")[0] == 404
    assert served("/ask/busy?key=0/3&from=60&to=0")[0] == 400
    assert served("/ask/window?key=0/7&level=0&from=0&to=9")[0] == 400


def test_mapped_memory_is_given_back_and_read_again(served, monkeypatch):
    first = served("/ask/window?key=0/0&level=0&from=0&to=60")
    monkeypatch.setattr("neuronprof.analyze.kept._MOST_MAPPED", 0)
    assert [served("/ask/window?key=0/0&level=0&from=0&to=60") for _ in range(2)] == [first] * 2
    assert first[0] == 200


def test_nobody_else_is_answered(served):
    assert served("/ask/notes?key=0/0", headers={"Host": "elsewhere.example"})[0] == 403
    assert served("/ask/notes?key=0/0", headers={"Origin": "http://elsewhere.example"})[0] == 403
    assert served("/ask/notes?key=0/0", "POST", body=b"[]")[0] == 403
    assert served("/", headers={"Host": "elsewhere.example"})[0] == 403


def test_an_allowed_origin_is_answered_as_the_own_one(served):
    tunnel = {"Host": "tunnel.example:8080", "Origin": "https://tunnel.example:8080"}
    assert served("/", headers=tunnel)[0] == 200
    assert served("/ask/notes?key=0/0", headers=tunnel) == (200, b"[]")
    assert served("/ask/notes?key=0/0", "POST", tunnel, b'[{"at": 20, "text": "a"}]')[0] == 200


def test_a_sheet_is_put_together_when_it_is_asked_for(served):
    status, text = served("/ask/sheet?name=operators")
    assert (status, b"What the time of all steps was spent on" in text) == (200, True)
    assert served("/ask/sheet?name=nothing")[0] == 400


def test_notes_are_saved_beside_the_trace(served):
    own = {"Origin": f"http://127.0.0.1:{served.port}"}
    assert served("/ask/notes?key=0/0") == (200, b"[]")
    assert served("/ask/notes?key=0/0", "POST", own, b'[{"at": 20, "text": "<b>idle</b>"}]')[0] == 200
    assert json.loads(served("/ask/notes?key=0/0")[1]) == [{"at": 20, "text": "<b>idle</b>"}]
    file = served.path.with_name("trace.parquet.notes.json")
    assert json.loads(file.read_text()) == [{"at": 20, "text": "<b>idle</b>"}]
    assert served("/ask/notes?key=0/0", "POST", own, b"{")[0] == 400
    assert served("/ask/notes?key=0/0", "POST", own, b"[]")[0] == 200
    assert not file.exists()


def test_a_trace_that_changes_is_told(served):
    assert served("/ask/rank?key=0/0")[0] == 200
    time.sleep(1.1)  # the files are looked at once a second
    served.path.unlink()
    status, text = served("/ask/window?key=0/0&level=0&from=0&to=60")
    assert (status, text.decode()) == (
        410,
        f"{served.path} was deleted while it was open. Start neuronprof view again to see it.",
    )


def test_what_a_trace_is_too_large_for_is_told_beside_the_rest(served, monkeypatch):
    monkeypatch.setattr(
        "neuronprof.analyze.plan.MOST_BYTES", 100
    )  # of three events of one step, 800 each for the advice
    status, text = served("/ask/sheet?name=summary")
    told = (
        f"advice is left out. To follow what waits for what in the 3 events of step 0 of {served.path} takes about 2.34 KiB of memory, "
        "and 100 B may be taken. Record less in one step, or fewer ranks (--trace-ranks)."
    )
    assert status == 200
    assert told in text.decode()


def test_what_cannot_be_summed_is_told_to_the_page_and_not_to_the_terminal(served, monkeypatch, caplog):
    def damaged(*_, **__):
        raise NeuronprofError("The trace is damaged.")

    monkeypatch.setattr("neuronprof.analyze.registry.run", damaged)
    assert served("/ask/sheet?name=summary") == (503, b"The trace is damaged.")
    assert not caplog.records
