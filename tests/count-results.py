#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the results of a meson test log.

usage: count-results.py LOG              passed, failed, skipped; a line a suite; a line a skip
       count-results.py --failed WHAT LOG   what failed, as a person wants to read it at the end
"""
import collections
import json
import sys

KINDS = {"OK": 0, "EXPECTEDFAIL": 0, "SKIP": 2}  # all else failed
N_LINES = 40  # of each stream of a failed test


def tests_of(path):
    with open(path, encoding="utf-8") as log:
        for line in log:
            test = json.loads(line)
            suite, _, name = test["name"].partition(" / ")
            yield suite.split(":")[-1], name or suite, KINDS.get(test["result"], 1), test


def print_counts(path):
    total = [0, 0, 0]
    suites = collections.defaultdict(lambda: [0, 0, 0])
    skips = []
    for suite, name, kind, test in tests_of(path):
        total[kind] += 1
        suites[suite][kind] += 1
        if kind == 2:
            said = (test.get("stdout") or test.get("stderr") or "").strip().splitlines()
            reason = said[-1].removeprefix("skipped: ") if said else "it says no reason"
            skips.append(f"skipped: {name}: {reason}")
    print(*total)
    for suite, (passed, failed, skipped) in sorted(suites.items()):
        print(f"{suite:<8} {passed:4} passed {failed:4} failed {skipped:4} skipped")
    for skip in skips:
        print(skip)


def excerpt(stream, text):
    """The end of a stream, and how much of it is not shown."""
    lines = text.rstrip().splitlines()
    if len(lines) > N_LINES:
        print(f"  {stream}, the last {N_LINES} of {len(lines)} lines:")
    elif lines:
        print(f"  {stream}:")
    for line in lines[-N_LINES:]:
        print("    " + line[:200])


def print_failed(what, path):
    for suite, name, kind, test in tests_of(path):
        if kind == 1:
            print(f"{what} {suite}/{name}: {test['result'].lower()}, exit "
                  f"{test.get('returncode')}, {test.get('duration', 0):.1f} s")
            excerpt("stdout", test.get("stdout") or "")
            excerpt("stderr", test.get("stderr") or "")
            print(f"  the whole log: {path.replace('testlog.json', 'testlog.txt')}")


if __name__ == "__main__":
    if sys.argv[1] == "--failed":
        print_failed(*sys.argv[2:])
    else:
        print_counts(sys.argv[1])
