#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`dcmem bench tune`, in small: every phase of every plan that fits was measured. argv: dcmem dcmemd."""
import json
import os
import subprocess
import sys
import tempfile

if os.environ.get("DCMEM_TEST_BUILD") == "sanitized":
    print("phases of a second under a sanitizer say nothing")
    sys.exit(77)
with tempfile.TemporaryDirectory() as top:
    out = os.path.join(top, "tune.json")
    done = subprocess.run([sys.argv[1], "bench", "tune", "--quick", "--seconds", "2", "--mib", "64",
                           "--quiet", "--dcmemd", sys.argv[2], "--json", out],
                          capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": top})
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.returncode
    with open(out, encoding="utf-8") as file:
        result = json.load(file)
    plans = {plan["plan"]: plan for plan in result["plans"]}
    assert plans["tuned"]["fits"] and plans["best mixed"]["fits"] and plans["all work"]["fits"]
    assert not plans["all raw"]["fits"], "the halved budget holds the raw model"
    for plan in plans.values():
        for phase in plan["phases"]:
            # A reader finishes what it began: a block of it may fall into the idle phase.
            assert phase["gbs"] > 0 or phase["phase"] == "idle", (plan["plan"], phase)
    assert sum(phase["changes"] for phase in plans["tuned"]["phases"]) > 0, "nothing was tuned"
    assert all(phase["changes"] == 0 for phase in plans["all work"]["phases"])
    assert os.listdir(top) == ["tune.json"], os.listdir(top)
