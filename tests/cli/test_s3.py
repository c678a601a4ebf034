"""Traces in S3, as a user of the command line has them, against a server that speaks S3's protocol."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "mlp.parquet"
TRAIN = "import torch\nprint('ran')\nm = torch.nn.Linear(8, 8)\nm(torch.ones(2, 8)).sum().backward()\n"


@pytest.fixture(scope="module")
def store():
    """The environment of a user whose S3 is a server on this machine with the bucket 'runs'."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stderr=subprocess.PIPE, text=True
    )
    address = next(found[0] for line in server.stderr if (found := re.findall(r"http://127.0.0.1:\d+", line)))
    env = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "eu-west-1",
    }
    made = {**os.environ, **env}
    in_s3(made, "store.create_dir('runs')")
    yield made
    server.terminate()
    server.communicate()


@pytest.fixture
def user(store, tmp_path):
    """The same with a cache folder of its own."""
    return {**store, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def in_s3(env, code):
    """Runs a line with `store`, a file system of the server."""
    opening = (
        "import os; from pyarrow.fs import S3FileSystem, FileSelector; store = S3FileSystem("
        "region='eu-west-1', endpoint_override=os.environ['AWS_ENDPOINT_URL'], allow_bucket_creation=True, allow_bucket_deletion=True)\n"
    )
    return python(env, opening + code)


def python(env, code):
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout


def put(env, file, key):
    in_s3(env, f"s = store.open_output_stream({key!r}); s.write(open({str(file)!r}, 'rb').read()); s.close()")


def neuronprof(env, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "neuronprof", *map(str, arguments)], env=env, cwd=cwd, capture_output=True, text=True
    )


def test_a_recording_goes_to_s3_and_is_analyzed_there(user, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)

    recorded = neuronprof(user, "record", "-o", "s3://runs/team/trace.parquet", "train.py", cwd=tmp_path)
    elsewhere = {**user, "XDG_CACHE_HOME": str(tmp_path / "another user's")}
    analyzed = neuronprof(elsewhere, "analyze", "s3://runs/team/trace.parquet", "utilization")

    assert recorded.returncode == 0, recorded.stderr
    assert "wrote s3://runs/team/trace.parquet" in recorded.stdout
    assert analyzed.returncode == 0, analyzed.stderr
    copy = next((tmp_path / "cache").rglob("trace.parquet"))
    assert analyzed.stdout.splitlines()[2:] == neuronprof(user, "analyze", copy, "utilization").stdout.splitlines()[2:]
    assert not list(tmp_path.glob("*.parquet"))


def test_what_has_not_changed_is_fetched_once(user, tmp_path):
    put(user, SAMPLE, "runs/kept.parquet")
    copy = tmp_path / "cache" / "neuronprof" / "s3" / "runs" / "kept.parquet"

    inodes = []
    for _ in range(2):
        assert neuronprof(user, "check", "s3://runs/kept.parquet", "--max", "step_time=9s").returncode == 0
        inodes.append(copy.stat().st_ino)
    put(user, shutil.copy(SAMPLE, tmp_path / "rewritten"), "runs/kept.parquet")
    assert neuronprof(user, "check", "s3://runs/kept.parquet", "--max", "step_time=9s").returncode == 0

    assert inodes[0] == inodes[1] != copy.stat().st_ino


def test_parts_go_there_and_are_replaced_by_a_trace_of_one_file(user, tmp_path):
    write = (
        "from neuronprof.trace.storage import writable; from neuronprof.trace.writer import TraceWriter\n"
        "import numpy as np\n"
        "with writable('s3://runs/parts') as path, TraceWriter(path, rows_per_part=%d) as writer:\n"
        "    for start in range(3):\n"
        "        writer.write(dict(engine='tensor', kind='compute', name='MATMUL', start_ts=np.array([start]), duration_ns=1))\n"
        "    writer.close({})\n"
    )
    names = "print(sorted(o.path for o in store.get_file_info(FileSelector('runs/parts', allow_not_found=True))))"
    count = "import neuronprof; print(len(neuronprof.load('s3://runs/parts').events))"
    elsewhere = {**user, "XDG_CACHE_HOME": str(tmp_path / "another")}

    python(user, write % 1)
    parts, events = in_s3(user, names), python(elsewhere, count)
    python(user, write % 9)

    assert (parts, events) == (f"{[f'runs/parts/part-0000{n}.parquet' for n in range(3)]}\n", "3\n")
    assert (in_s3(user, names), python(elsewhere, count)) == ("[]\n", "3\n")


def test_a_bucket_that_is_not_there_is_told_before_the_script_runs(user, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)

    recorded = neuronprof(user, "record", "-o", "s3://nobody/trace.parquet", "train.py", cwd=tmp_path)

    assert (recorded.returncode, recorded.stdout) == (2, "")
    assert recorded.stderr == (
        "neuronprof: Cannot write to s3://nobody/trace.parquet: there is no bucket nobody; create it first.\n"
    )


def test_a_trace_that_cannot_be_sent_is_kept(user, tmp_path):
    in_s3(user, "store.create_dir('gone')")
    delete = "store = S3FileSystem(region='eu-west-1', endpoint_override=os.environ['AWS_ENDPOINT_URL'], allow_bucket_deletion=True)"
    (tmp_path / "train.py").write_text(
        f"import os\nfrom pyarrow.fs import S3FileSystem\n{delete}\nstore.delete_dir('gone')\n{TRAIN}"
    )

    recorded = neuronprof(user, "record", "-o", "s3://gone/trace.parquet", "train.py", cwd=tmp_path)

    assert recorded.returncode == 2
    [sentence] = [line for line in recorded.stderr.splitlines() if line.startswith("neuronprof: ")]
    copy = tmp_path / "cache" / "neuronprof" / "s3" / "gone" / "trace.parquet"
    assert re.fullmatch(
        r"neuronprof: The trace could not be sent to s3://gone/trace.parquet: .+NO_SUCH_BUCKET.+; it is kept in (.+)\.",
        sentence,
    ), sentence
    assert neuronprof(user, "analyze", copy).returncode == 0


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("s3://runs/absent.parquet", "There is no trace s3://runs/absent.parquet; check the name."),
        ("s3://runs", "s3://runs names no trace; write it like s3://bucket/folder/trace.parquet."),
        ("s3://runs/../../x", "s3://runs/../../x names no trace; write it like s3://bucket/folder/trace.parquet."),
    ],
)
def test_a_wrong_location_is_one_sentence(user, location, sentence):
    analyzed = neuronprof(user, "analyze", location)

    assert (analyzed.returncode, analyzed.stderr) == (2, f"neuronprof: {sentence}\n")


def test_a_store_that_does_not_answer_is_one_sentence(user):
    analyzed = neuronprof({**user, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "analyze", "s3://runs/x.parquet")

    assert analyzed.returncode == 2
    assert re.fullmatch(r"neuronprof: Cannot read s3://runs/x.parquet: .+NETWORK_CONNECTION.+\.\n", analyzed.stderr)
