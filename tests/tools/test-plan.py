#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""dcmem plan: plans of a simulated large host keep the budget, settle, and refuse bad traces.

usage: test-plan.py DCMEM TRACE
"""
import copy
import json
import os
import subprocess
import sys
import tempfile

dcmem, path = sys.argv[1:3]


def plan(trace):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(trace if isinstance(trace, str) else json.dumps(trace))
        file.flush()
        return subprocess.run([dcmem, "plan", "--simulate", file.name, "--json"],
                              capture_output=True, text=True, timeout=300)


with open(path) as file:
    trace = json.load(file)
trace["models"]["count"], trace["models"]["tensors"] = 20, 20
for phase in trace["phases"]:
    phase["budget_gib"] /= 25
    phase["clients"] /= 25
first, second = plan(trace), plan(trace)
assert first.returncode == 0, first.stderr
assert first.stdout == second.stdout, "the same trace gave two plans"
phases = json.loads(first.stdout)["phases"]
assert len(phases) == len(trace["phases"])
tensors = 20 * 20 * 64 * 2**20
for got, asked in zip(phases, trace["phases"]):
    where = got["name"]
    assert got["settled"] and got["fits"], where
    assert got["held_bytes"] <= asked["budget_gib"] * 2**30 + 1, where
    assert sum(got["class_bytes"].values()) <= got["held_bytes"], where
    assert tensors / 1.6 * 0.999 <= sum(got["class_bytes"].values()) <= tensors, where
    demand = asked["clients"] * asked["client_gbs"] * 1e9
    assert abs(got["demand"] - demand) < 1, where
    assert 0 < got["throughput"] <= demand * 1.000001, where

# With room for everything raw, what is read ends up raw, and the ceiling is by hand:
# 1000 clients, each 1 / (1/12 + 0.05) = 7.5 GB/s at most; 12 * 38 = 456 GB/s of memory.
roomy = copy.deepcopy(trace)
roomy["phases"] = [{"name": "roomy", "budget_gib": 100, "clients": 1000, "client_gbs": 1}]
got = json.loads(plan(roomy).stdout)["phases"][0]
assert got["class_bytes"]["raw"] == tensors, got
assert abs(got["throughput"] - 456e9) < 1e6 and got["limit"] == "memory", got

for key, value in (("host", {}), ("forms", []), ("phases", []), ("models", {"count": 1e9})):
    bad = dict(trace)
    bad[key] = value
    r = plan(bad)
    assert r.returncode == 1 and r.stderr.count("\n") == 1, (key, r)
for text in ("", "[]", "{", '{"host": 1}'):
    assert plan(text).returncode == 1, text
assert subprocess.run([dcmem, "plan"], capture_output=True).returncode == 2
assert subprocess.run([dcmem, "plan", "--simulate", os.devnull], capture_output=True).returncode == 1
