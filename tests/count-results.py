# SPDX-License-Identifier: Apache-2.0
"""Counts the results of a meson test log: passed, failed, skipped; then a line a suite."""
import collections
import json
import sys

KINDS = {"OK": 0, "EXPECTEDFAIL": 0, "SKIP": 2}  # all else failed
total = [0, 0, 0]
suites = collections.defaultdict(lambda: [0, 0, 0])
with open(sys.argv[1], encoding="utf-8") as log:
    for line in log:
        test = json.loads(line)
        suite = test["name"].split(" / ")[0].split(":")[-1]
        for count in (total, suites[suite]):
            count[KINDS.get(test["result"], 1)] += 1
print(*total)
for suite, (passed, failed, skipped) in sorted(suites.items()):
    print(f"{suite:<8} {passed:4} passed {failed:4} failed {skipped:4} skipped")
