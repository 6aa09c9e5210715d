#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cross build, run by its emulator, packs the bytes that the host's own build packs, and serves.

usage: emulated.py BUILD_DIR MODEL_DIR [EMULATOR...]

DCMEM_NATIVE names the host's own dcmem; without it the bytes are verified against the source alone.
"""
import filecmp
import os
import select
import subprocess
import sys
import tempfile

READY_SECONDS = 60


def main():
    build, model, *wrapper = sys.argv[1:]
    if not wrapper:
        print("the cross file names no emulator")
        return 77

    def run(command, environment=None):
        return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, env=environment).stdout

    tool = wrapper + [os.path.join(build, "tools/dcmem/dcmem")]
    lm = wrapper + [os.path.join(build, "examples/lm/lm"), "generate", "--prompt",
                    "Once upon a time", "--tokens", "24", "--threads", "1", "--model"]
    with tempfile.TemporaryDirectory() as directory:
        container = os.path.join(directory, "tiny.dcmem")
        run(tool + ["pack", model, "-o", container, "--quiet"])
        run(tool + ["verify", container, "--against", model])
        native = os.environ.get("DCMEM_NATIVE")
        if native:
            other = os.path.join(directory, "native.dcmem")
            run([native, "pack", model, "-o", other, "--quiet"])
            if not filecmp.cmp(container, other, shallow=False):
                print("the emulated and the native build pack different bytes")
                return 1
            print("packed the same bytes as the native build")
        read_fd, write_fd = os.pipe()
        path = os.path.join(directory, "socket")
        with subprocess.Popen(wrapper + [os.path.join(build, "daemon/dcmemd"), "--socket", path,
                                         "--model-dir", directory, "--ready-fd", str(write_fd)],
                              pass_fds=[write_fd], stdin=subprocess.DEVNULL) as daemon:
            try:
                os.close(write_fd)
                if (not select.select([read_fd], [], [], READY_SECONDS)[0] or
                        not os.read(read_fd, 1)):
                    print("dcmemd does not start under the emulator")
                    return 1
                environment = dict(os.environ, DCMEM_SOCKET=path)
                run(tool + ["load", container], environment)
                served = run(lm + ["tiny"], environment)
                embedded = run(lm + [container])
            finally:
                os.close(read_fd)
                daemon.terminate()
        print(f"served:   {served!r}\nembedded: {embedded!r}\ndcmemd: exit {daemon.returncode}")
        return 0 if len(served) > 24 and served == embedded and daemon.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
