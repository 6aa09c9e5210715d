#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ./quickstart prints is true, fits 80 columns, and nothing stays behind.

usage: test-quickstart.py QUICKSTART_PY BUILD_DIR MODEL_DIR
"""
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile

SECONDS = 120


def run(command, directory, **options):
    return subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=SECONDS, check=False, **options)


def left_behind(build, directory):
    return [name for name in os.listdir(build) if name.startswith("run.")] + \
           [name for name in os.listdir(directory) if name.startswith("dcmem-")]


def rows_of(text):
    """label -> the numbers of a row, "-" as 0."""
    rows = {}
    for line in text.splitlines():
        found = re.match(r"  (\S.*?)  +((?:(?:[0-9.]+ MB|[0-9.]+|-) *){3})$", line)
        if found:
            rows[found.group(1)] = [0 if cell == "-" else float(cell) for cell in
                                    re.findall(r"[0-9.]+|-", found.group(2))]
    return rows


def check_table(text):
    """The sums of the table are the sums of its rows."""
    rows = rows_of(text)
    for total, parts in (("memory in all", ("daemon: ", "process ")),
                         ("tokens/s in all", ("tokens/s, process ",))):
        chosen = [cells for label, cells in rows.items() if label.startswith(parts)]
        for column in range(3):
            by_hand = sum(cells[column] for cells in chosen)
            assert abs(by_hand - rows[total][column]) <= 0.1 * len(chosen) + 2 * (
                total != "memory in all"), (total, column, by_hand, rows[total])
    assert len([label for label in rows if label.startswith("process ")]) == 3, rows
    return rows


def commands_of(text):
    block = text.split("Three commands to try next:\n")[1].split("\ndcmemd still runs")[0]
    return [line.strip() for line in block.splitlines() if line.strip()]


def check_plain(command, build, model, directory):
    done = run(command + ["--tokens", "40"], directory)
    assert done.returncode == 0 and done.stderr == "", (done.returncode, done.stderr)
    before = done.stdout.split("Three commands to try next:")[0]  # they have the caller's paths
    long = [line for line in before.splitlines() if len(line) > 80 and
            not line.startswith("Packing ")]
    assert not long, long
    assert "bit for bit: 56 of 56 tensors" in done.stdout, done.stdout
    bits = re.search(r"linear layers take ([0-9.]+) bits", done.stdout)
    assert bits and 3.5 < float(bits.group(1)) < 3.65, done.stdout
    with open(os.path.join(model, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert len(header) - ("__metadata__" in header) == 56
    check_table(done.stdout)
    assert not left_behind(build, directory), left_behind(build, directory)
    commands = commands_of(done.stdout)
    assert len(commands) == 3, commands
    for line in commands[:2]:  # the third is ./quickstart --keep
        tried = run(["sh", "-c", line], directory)
        assert tried.returncode == 0 and tried.stdout, (line, tried.stderr)


def daemon_bytes(pid):
    """What the kernel says of the daemon: blocks of its memfds, and private and file Pss."""
    files = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        if "memfd:dcmem-" in os.readlink(path):
            stat = os.stat(path)
            files[stat.st_ino] = stat.st_blocks * 512
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return sum(files.values()) + sum(int(line.split()[1]) * 1024 for line in rollup if
                                         line.startswith(("Pss_Anon:", "Pss_File:")))


def check_keep(command, build, directory):
    done = run(command + ["--keep", "--tokens", "100"], directory)
    stop = re.search(r"^  (kill ([0-9]+); rm -r .*)$", done.stdout, re.M)
    assert done.returncode == 0 and stop, (done.stdout, done.stderr)
    pid = int(stop.group(2))
    pidfd = os.pidfd_open(pid)
    try:
        rows = check_table(done.stdout)
        said = sum(cells[2] for label, cells in rows.items() if label.startswith("daemon: ")) * 1e6
        real = daemon_bytes(pid)
        print(f"memory of the daemon: the table says {said:.0f}, the kernel {real}")
        assert abs(said - real) < 0.1 * real + 1e6
        commands = commands_of(done.stdout)
        assert len(commands) == 4 and commands[0].startswith("export "), commands
        for line in commands[1:]:
            tried = run(["sh", "-c", f"{commands[0]}; {line}"], directory)
            assert tried.returncode == 0 and tried.stdout, (line, tried.stderr)
    finally:
        stopped = run(["sh", "-c", stop.group(1)], directory)
        assert stopped.returncode == 0, stopped.stderr
        assert select.select([pidfd], [], [], SECONDS)[0], "dcmemd does not stop"
        os.close(pidfd)
    assert not left_behind(build, directory), left_behind(build, directory)


def check_interrupt(command, build, directory):
    """Ctrl-C while three processes generate: one line, and nothing stays."""
    with subprocess.Popen(command + ["--tokens", "1000"], cwd=directory, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("Three processes"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, (process.returncode, errors)
    assert errors == "quickstart: interrupted\n", errors
    assert not left_behind(build, directory), left_behind(build, directory)


def check_refusals(command, directory):
    empty = os.path.join(directory, "empty")
    os.mkdir(empty)
    done = run(command[:-1] + [empty], directory)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("quickstart: ") and done.stderr.count("\n") == 1, done.stderr


def main():
    if os.environ.get("DCMEM_TEST_BUILD", "plain") != "plain":
        print("memory under a sanitizer says nothing")
        return 77
    script, build, model = sys.argv[1:]
    command = ["/usr/bin/env", "python3", script, build, model]
    with tempfile.TemporaryDirectory(prefix="quickstart-") as directory:
        os.environ["TMPDIR"] = directory
        check_plain(command, build, model, directory)
        check_keep(command, build, directory)
        check_interrupt(command, build, directory)
        check_refusals(command, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
