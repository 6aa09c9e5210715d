#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every verb of `dcmem --help` is in dcmem(1) and in the completion, and none is there that is not.

usage: verbs-documented.py DCMEM MAN_PAGE COMPLETION
"""
import re
import subprocess
import sys


def main():
    tool, man, completion = sys.argv[1:]
    text = subprocess.run([tool, "--help"], check=True, capture_output=True, text=True).stdout
    block = re.search(r"^Verbs:\n((?:  .*\n)+)", text, re.M)
    verbs = set(re.findall(r"^  (\w+) ", block.group(1), re.M)) if block else set()
    with open(man, encoding="utf-8") as file:
        in_man = set(re.findall(r"^\.SS (\w+)", file.read(), re.M))
    with open(completion, encoding="utf-8") as file:
        in_completion = set(re.search(r'verbs="([^"]*)"', file.read()).group(1).split())
    for place, found in ((man, in_man), (completion, in_completion)):
        for verb in sorted(verbs ^ found):
            print(f"{place}: {verb}: {'missing' if verb in verbs else 'no such verb'}")
    print(f"verbs: {' '.join(sorted(verbs))}")
    return 0 if verbs and verbs == in_man == in_completion else 1


if __name__ == "__main__":
    sys.exit(main())
