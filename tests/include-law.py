#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Enforces the room table of docs/architecture.md: every #include of every room is on its list.

A path of the project in an #include is resolved as the compiler would (beside the file, then
include/, lib/, the top), so that a detour by "../" is seen too. Exit 1 with one line a breach.
"""
import pathlib
import re
import sys
import tempfile

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)
SOURCES = (".c", ".h", ".cc")

# Headers of libraries, and the only files that may see them. Those of libc are free to all rooms.
GUARDED = {
    "xxhash.h": ["lib/base/"],
    "zstd.h": ["lib/codec/", "bench/bench-peers"],
    "lz4.h": ["bench/bench-peers"],
    "htscodecs/": ["bench/bench-peers"],
    "emmintrin.h": ["bench/bench-coder"],
    "immintrin.h": ["lib/codec/", "examples/lm/"],
    "cpuid.h": ["lib/codec/", "examples/lm/"],
    "jansson.h": ["lib/quant/json-file", "lib/quant/export", "lib/model/safetensors", "lib/model/source", "lib/model/pack",
                  "daemon/config", "daemon/stats", "daemon/admin", "tools/dcmem/",
                  "examples/lm/"],
    "liburing.h": ["daemon/loop", "daemon/read-ring"],
    "numa.h": ["daemon/numa"],
    "numaif.h": ["daemon/numa"],
    "systemd/": ["daemon/"],
}
CONTRACT_MAY = {"stdint.h", "stddef.h", "stdbool.h"}

# room: prefixes of project files that it may include, itself apart.
READING = ["lib/model/index", "lib/model/container", "lib/model/dtype"]
ROOMS = {
    "include/dcmem/": [],
    "lib/base/": [],
    "lib/codec/": ["include/dcmem/", "lib/base/"],
    "lib/model/": ["include/dcmem/", "lib/base/", "lib/codec/"],
    "lib/proto/": ["include/dcmem/", "lib/base/"],
    "lib/planner/": ["lib/base/"],
    "lib/quant/": ["include/dcmem/", "lib/base/", "lib/codec/codec.h", "lib/model/"],
    "daemon/": ["include/dcmem/", "lib/base/", "lib/codec/", "lib/planner/", "lib/proto/"] + READING,
    "client/": ["include/dcmem/", "lib/base/", "lib/codec/", "lib/proto/"] + READING,
    "bench/": ["include/dcmem/", "lib/base/", "lib/codec/", "lib/model/"],
    "tools/dcmem/": ["include/dcmem/dcmem.h", "include/dcmem/container.h", "lib/base/",
                     "lib/model/", "lib/planner/", "lib/quant/", "bench/"],
    "examples/": ["include/dcmem/dcmem.h"],
}
# The reading half of lib/model is linked without the half that makes containers.
MAKING = ("lib/model/safetensors", "lib/model/source", "lib/model/writer", "lib/model/pack",
              "lib/model/plan")


def resolve(root, file, name):
    """The project file an #include names, relative to the root, or None."""
    for base in (file.parent, root / "include", root / "lib", root):
        path = (base / name).resolve()
        if path.is_file() and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return None


def breach(room, name, target, file):
    """Why this #include is against the table, or None."""
    if target is None:
        for header, allowed in GUARDED.items():
            if name == header or (header.endswith("/") and name.startswith(header)):
                if not file.startswith(tuple(allowed)):
                    return "only " + ", ".join(allowed) + " may"
        if room == "include/dcmem/" and name not in CONTRACT_MAY:
            return "a contract includes <stdint.h> <stddef.h> <stdbool.h> alone"
        return None
    if target.endswith(".c"):
        return "no file includes a .c"
    if room == "include/dcmem/":
        return None if target.startswith(room) else "a contract knows contracts alone"
    if target.startswith(room):
        if room == "lib/model/" and file.startswith(tuple(READING)) and \
                target.startswith(MAKING):
            return "the reading half of lib/model does not know the making half"
        return None
    if not target.startswith(tuple(ROOMS[room])):
        return f"{room} may not call {target}"
    return None


def check(root):
    """All breaches, and how many files were read."""
    found, n_files = [], 0
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix not in SOURCES:
                continue
            n_files += 1
            file = path.relative_to(root).as_posix()
            text = path.read_text(encoding="utf-8")
            for match in INCLUDE.finditer(text):
                name = match.group(2)
                why = breach(room, name, resolve(root, path, name), file)
                if why:
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{file}:{line}: {name}: {why}")
    return found, n_files


def sees_breaches():
    """The law must be able to fail: one planted breach of each kind is found."""
    planted = {
        "lib/base/a.c": '#include "../../daemon/store.h"\n',
        "daemon/store.h": "#include <zstd.h>\n",
        "daemon/session.c": "# include <liburing.h>\n",
        "include/dcmem/x.h": "#include <stdio.h>\n",
        "client/c.c": '#include "model/pack.h"\n',
        "lib/model/pack.h": "",
        "lib/model/index.c": '#include "pack.h"\n',
        "tools/dcmem/verb-x.c": '#include "main.c"\n',
        "tools/dcmem/main.c": '#include "proto/wire.h"\n',
        "lib/proto/wire.h": "",
        "examples/lm/lm.c": '#include "base/io.h"\n',
        "lib/base/io.h": "",
    }
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory).resolve()
        for file, text in planted.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text, encoding="utf-8")
        found = {line.split(":")[0] for line in check(root)[0]}
    return found == {file for file, text in planted.items() if text}


def main():
    if not sees_breaches():
        print("include-law: a planted breach was not found")
        return 1
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found, n_files = check(root)
    for line in found:
        print(line)
    print(f"{n_files} files, {len(found)} breaches")
    return 1 if found or n_files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
