#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The commands that README, docs/protocol.md, dcmem(1) and `dcmem VERB --help` show work as they
stand there, in a directory that has the model they speak of; the C of README and libdcmem(3)
compiles and runs; the counters that docs/protocol.md names are those that the daemon gives.

usage: test-commands.py SOURCE_ROOT BUILD_ROOT
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

READY_SECONDS = 60
PROGRAM = """#include <err.h>
#include <stdio.h>
#include <dcmem/dcmem.h>
static float numbers[4096];
int main(void)
{
%s
	printf("%%g\\n", numbers[0]);
	return numbers[0] == 0;
}
"""


def blocks_of(text, first):
    """Blocks of lines that a tab indents, of which one starts with `first`."""
    blocks = re.findall(r"(?:^\t.*\n|^\n(?=\t))+", text, re.M)
    blocks = ["".join(line[1:] or "\n" for line in block.splitlines(True)) for block in blocks]
    return [block for block in blocks if re.search(rf"^(?:{first})", block, re.M)]


class Shell:
    """Runs commands in the sandbox, and the one daemon that they start there."""

    def __init__(self, directory, build):
        self.directory = directory
        self.daemon = None
        self.socket = os.path.join(directory, "socket")
        programs = [os.path.join(build, folder) for folder in ("tools/dcmem", "daemon")]
        self.environment = dict(os.environ, DCMEM_SOCKET=self.socket,
                                PATH=":".join(programs + [os.environ["PATH"]]))

    def start(self, command):
        log = open(os.path.join(self.directory, "log"), "wb")
        with log:
            self.daemon = subprocess.Popen(
                ["bash", "-c", "exec " + command.rstrip("& ")], cwd=self.directory,
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until and self.daemon.poll() is None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                if probe.connect_ex(self.socket) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError(f"{command}: dcmemd does not listen")

    def run(self, where, command):
        command = command.replace("/tmp/dcmem.sock", self.socket)
        command = command.replace("/run/dcmem/socket", self.socket)
        command = re.sub(r"\t# .*", "", command)
        if command.startswith("dcmemd ") and command.endswith("&"):
            self.start(command)
            return
        if command.startswith("dcmem bench "):
            print(f"{where}: {command}: not tried, it takes minutes; test-bench.py runs the verb")
            return
        needs = [word for word in ("socat", "jq") if word in command and not shutil.which(word)]
        if needs:
            print(f"{where}: {command}: not tried, {needs[0]} is not here")
            return
        done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", command], cwd=self.directory,
                              env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, check=False, timeout=READY_SECONDS)
        assert done.returncode == 0, (where, command, done.returncode, done.stdout, done.stderr)
        assert not done.stderr or "dcmem pack" in command, (where, command, done.stderr)
        print(f"{where}: {command}: {len(done.stdout)} bytes")


def compile_and_run(source, build, shell, where, text):
    text = PROGRAM % re.sub(r"^", "\t", text, flags=re.M)
    path = os.path.join(shell.directory, "program.c")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    client = os.path.join(build, "client")
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-I", os.path.join(source, "include"),
                    path, "-o", "program.out", "-L", client, "-ldcmem", f"-Wl,-rpath,{client}"],
                   check=True, cwd=shell.directory, timeout=READY_SECONDS)
    shell.run(where, "./program.out")


def check_stats(protocol, shell):
    """Members of the reply to "stats", there and in the document."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as text:
        text.connect(shell.socket + ".text")
        with text.makefile("rwb") as stream:
            stream.write(b'{"cmd":"stats"}\n')
            stream.flush()
            reply = json.loads(stream.readline())
    given = set(reply) - {"ok", "models"} | set(reply["models"][0])
    told = re.sub(r"\([^)]*\)", "", protocol.split("### stats\n")[1])
    told = set(re.findall(r"`([a-z_]+)`", told)) - {"models", "list"}
    assert given == told, (given ^ told)


def try_all(source, build, shell):
    def read(*path):
        with open(os.path.join(source, *path), encoding="utf-8") as file:
            return file.read()

    groups = [("README.md", block.splitlines())
              for block in blocks_of(read("README.md"), "dcmem |dcmemd ")]
    example = read("man", "dcmem.1").split(".SH EXAMPLES\n.nf\n")[1].split(".fi")[0]
    groups.append(("dcmem.1", example.replace("\\-", "-").splitlines()))
    tool = os.path.join(build, "tools", "dcmem", "dcmem")

    def help_of(*verb):
        return subprocess.run([tool, *verb, "--help"], check=True, capture_output=True,
                              text=True).stdout

    verbs = re.findall(r"^  (\w+) +", help_of().split("Verbs:\n")[1].split("\n\n")[0], re.M)
    for verb in [[]] + sorted([[verb] for verb in verbs], key=lambda verb: verb == ["verify"]):
        lines = re.findall(r"^  (dcmem .*)$", help_of(*verb).split("Verbs:\n")[-1], re.M)
        groups.append((f"dcmem {' '.join(verb)} --help".replace("  ", " "), lines))
    n_commands = 0
    for where, lines in groups:
        if where != "README.md":  # whatever a group before has loaded
            subprocess.run([tool, "unload", "my-model"], env=shell.environment, check=False,
                           capture_output=True)
            subprocess.run([tool, "unload", "llama"], env=shell.environment, check=False,
                           capture_output=True)
            shutil.copy(os.path.join(shell.directory, "my-model.dcmem"),
                        os.path.join(shell.directory, "llama.dcmem"))
            if not re.search(r"^dcmem load", "\n".join(lines), re.M):
                shell.run("before", "dcmem load llama.dcmem")
        for line in lines:
            if line and not line.startswith("export "):  # the sandbox has its own socket
                shell.run(where, line)
                n_commands += 1
    assert n_commands >= 20, n_commands
    blocks = blocks_of(read("README.md"), "#include <dcmem")
    assert len(blocks) == 1, blocks
    shell.run("before", "dcmem load my-model.dcmem")
    protocol = read("docs", "protocol.md")
    shown = re.findall(r"^```\n\$ ((?:.*\\?\n)*?)(?:\{.*\n)?```$", protocol, re.M)
    assert len(shown) == 2, shown
    for command in shown:
        shell.run("docs/protocol.md", command.strip())
    check_stats(protocol, shell)
    compile_and_run(source, build, shell, "README.md", re.sub("^#include.*\n", "", blocks[0],
                                                              flags=re.M))
    example = read("man", "libdcmem.3").split(".Bd -literal\n")[1].split(".Ed")[0]
    compile_and_run(source, build, shell, "libdcmem.3", example)


def main():
    if os.environ.get("DCMEM_TEST_BUILD", "plain") != "plain":
        print("programs without a sanitizer cannot link a library with one")
        return 77
    source, build = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="dcmem-") as directory:
        for name in ("my-model", "llama"):
            shutil.copytree(os.path.join(source, "examples", "models", "tiny-llama"),
                            os.path.join(directory, name))
        shutil.copy(os.path.join(source, "tests", "data", "valid-books-4097.u16"),
                    os.path.join(directory, "text.u16"))
        shell = Shell(directory, build)
        try:
            try_all(source, build, shell)
        finally:
            if shell.daemon:
                shell.daemon.terminate()
                shell.daemon.wait(READY_SECONDS)
        assert shell.daemon.returncode == 0, shell.daemon.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
