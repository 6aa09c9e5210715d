# SPDX-License-Identifier: Apache-2.0
"""`dcmem bench load` on little: the JSON has what it promises and agrees with the table, nothing is
left behind, also after Ctrl-C, and nonsense is refused."""
import json
import os
import signal
import subprocess
import sys
import tempfile

import synthetic

TOOL, DAEMON = sys.argv[1:3]
STATS = {"median", "min", "q1", "q3", "max", "samples"}


def bench(work, what, *args):
    path = os.path.join(work, what + ".json")
    result = synthetic.run(TOOL, "bench", what, "--quick", "--dcmemd", DAEMON, "--dir", work,
                           "--json", path, *args)
    assert result.returncode == 0 and result.stderr == b"", result
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    assert document["format"] == "dcmem-bench-" + what and document["version"] == 1
    assert document["complete"] is True and document["quick"] is True
    assert document["machine"]["n_cpus"] >= 1
    os.remove(path)
    assert os.listdir(work) == [], os.listdir(work)
    return document, result.stdout.decode()


def check_stats(stats):
    assert set(stats) == STATS and stats["samples"] >= 1
    assert 0 < stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]


def load(work):
    document, text = bench(work, "load")
    assert [a["n_tensors"] for a in document["attach"]] == [11, 100011]
    for attach in document["attach"]:
        check_stats(attach["ms"])
        assert attach["ms"]["median"] < 1000
        assert f"attach, {attach['n_tensors']} tensors" in text
    rows = {row["what"]: row["gb_s"] for row in document["load"]}
    assert list(rows) == ["cat-cold", "load-cold", "cat-shm-warm", "load-warm"]
    for stats in rows.values():
        check_stats(stats)
        assert f"{stats['median']:.2f} GB/s" in text, (stats, text)
    for ratio, one, other in (("cold_to_cat", "load-cold", "cat-cold"),
                              ("warm_to_cat_shm", "load-warm", "cat-shm-warm")):
        expected = rows[one]["median"] / rows[other]["median"]
        assert abs(document[ratio] / expected - 1) < 1e-4
    assert document["file_bytes"] > 1 << 20
    assert ("NOT COLD" in text) == (document["cached_after_drop_bytes"] > 0)
    assert not [n for n in os.listdir("/dev/shm") if n == f"dcmem-bench-{os.getpid()}"]


def refusals(work):
    for args, code in ((("load", "--none"), 2), (("load", "a", "b"), 2),
                       (("load", "--budget", "60%"), 2), (("serving",), 2),
                       (("load", "--dcmemd", "/nonexistent"), 1),
                       (("load", "--dcmemd", "/bin/false"), 1),
                       (("load", "--dir", os.path.join(work, "none")), 1),
                       (("load", "--json", os.path.join(work, "none", "x")), 1),
                       (("load", os.path.join(work, "none.dcmem"), "--dcmemd", DAEMON), 1)):
        if "--dir" not in args:
            args = (*args, "--dir", work)
        result = synthetic.run(TOOL, "bench", *args, env={**os.environ, "TMPDIR": work})
        assert result.returncode == code and result.stderr.startswith(b"dcmem bench: "), result
        assert os.listdir(work) == [], (args, os.listdir(work))


def interrupted(work):
    path = os.path.join(work, "interrupted.json")
    tool = subprocess.Popen([TOOL, "bench", "load", "--dcmemd", DAEMON, "--dir", work, "--json",
                             path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not os.path.exists(path):
        assert tool.poll() is None
    tool.send_signal(signal.SIGINT)
    _, error = tool.communicate(timeout=60)
    assert tool.returncode == 1 and b"stopped" in error, (tool.returncode, error)
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["complete"] is False
    assert os.listdir(work) == ["interrupted.json"], os.listdir(work)


def main():
    for step in (load, refusals, interrupted):
        with tempfile.TemporaryDirectory() as work:
            step(work)
        print(step.__name__, "ok", flush=True)


if __name__ == "__main__":
    main()
