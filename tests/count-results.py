# SPDX-License-Identifier: Apache-2.0
"""Counts the results of a meson test log: prints passed, failed, skipped."""
import json
import sys

count = {"passed": 0, "failed": 0, "skipped": 0}
with open(sys.argv[1], encoding="utf-8") as log:
    for line in log:
        result = json.loads(line)["result"]
        kind = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}.get(result, "failed")
        count[kind] += 1
print(count["passed"], count["failed"], count["skipped"])
