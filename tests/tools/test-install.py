#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `meson install` leaves in DESTDIR is what a distribution packages, and programs build on it.

usage: test-install.py SOURCE_ROOT BUILD_ROOT MESON PREFIX
"""
import ctypes
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile

# Relative to the prefix; LIBDIR has the architecture in it.
EXPECTED = """
bin/dcmem
bin/dcmemd
include/dcmem/dcmem.h
LIBDIR/libdcmem.a
LIBDIR/libdcmem.so
LIBDIR/libdcmem.so.1
LIBDIR/libdcmem.so.[0-9]*.[0-9]*.[0-9]*
LIBDIR/pkgconfig/dcmem.pc
lib/systemd/system/dcmemd.service
lib/systemd/system/dcmemd.socket
lib/systemd/system/dcmemd-text.socket
lib/sysusers.d/dcmem.conf
lib/tmpfiles.d/dcmem.conf
share/bash-completion/completions/dcmem
share/bash-completion/completions/dcmemd
share/fish/vendor_completions.d/dcmem.fish
share/fish/vendor_completions.d/dcmemd.fish
share/zsh/*/_dcmem
share/man/man1/dcmem.1
share/man/man3/libdcmem.3
share/man/man5/dcmemd.json.5
share/man/man8/dcmemd.8
share/doc/dcmem/LICENSE
share/doc/dcmem/NEWS.md
share/doc/dcmem/README.md
share/doc/dcmem/configuration.md
share/doc/dcmem/examples/hello.c
""".split()
LIBRARIES = {"libc", "libzstd", "libxxhash", "ld-linux-x86-64", "ld-linux-aarch64"}


def run(*command, **options):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def check_files(source, root, prefix):
    found = {os.path.relpath(os.path.join(folder, file), root)
             for folder, _, files in os.walk(root) for file in files}
    libdir = os.path.dirname(next(path for path in found if path.endswith("/libdcmem.a")))
    etc = "etc" if prefix == "/usr" else os.path.join(prefix.lstrip("/"), "etc")
    expected = [os.path.join(etc, "dcmem", "dcmemd.json")]
    expected += [line.replace("LIBDIR", libdir) if line.startswith("LIBDIR")
                 else os.path.join(prefix.lstrip("/"), line) for line in EXPECTED]
    expected += [os.path.join(prefix.lstrip("/"), "share/doc/dcmem", page)
                 for page in os.listdir(os.path.join(source, "docs"))
                 if page.endswith(".md") and page != "plan.md"]  # of who works on it, not of users
    missing = [line for line in expected if not fnmatch.filter(found, line)]
    surplus = [path for path in sorted(found)
               if not any(fnmatch.fnmatch(path, line) for line in expected)]
    assert not missing and not surplus, (missing, surplus)
    return os.path.join(root, libdir), os.path.join(root, prefix.lstrip("/"))


def check_library(libdir):
    library = os.path.join(libdir, "libdcmem.so.1")
    needed = set(re.findall(r"\(NEEDED\).*\[([^]]*?)\.so", run("readelf", "-d", library)))
    assert needed <= LIBRARIES and "libzstd" in needed, needed
    symbols = re.findall(r"^\w+ [TDBRVW] ([^@\n]+)",
                         run("nm", "-D", "--defined-only", library), re.M)
    assert symbols and all(name.startswith("dcmem_") for name in symbols), symbols
    assert ctypes.CDLL(library).dcmem_abi_version() == 1  # dlopen
    assert "RUNPATH" not in run("readelf", "-d", library)


def check_programs(source, root, libdir, prefix_dir, directory):
    """The program of the README, built on the installed tree, reads a model that the installed
    dcmem packed: linked to the shared library, and to the static one."""
    environment = dict(os.environ, PKG_CONFIG_PATH=os.path.join(libdir, "pkgconfig"),
                       PKG_CONFIG_SYSROOT_DIR=root, LD_LIBRARY_PATH=libdir)
    flags = run("pkg-config", "--cflags", "--libs", "dcmem", env=environment).split()
    tool = os.path.join(prefix_dir, "bin", "dcmem")
    model = os.path.join(source, "examples", "models", "tiny-llama")
    container = os.path.join(directory, "tiny.dcmem")
    run(tool, "pack", model, "-o", container, "--quiet", env=environment)
    hello = os.path.join(prefix_dir, "share", "doc", "dcmem", "examples", "hello.c")
    said = []
    for program, compiler in (("shared", ["gcc", "-std=c99", "-pedantic"]),
                              ("static", ["gcc"]), ("cxx", ["g++", "-std=c++11", "-x", "c++"])):
        out, libs, text = os.path.join(directory, program), flags, hello
        if program == "static":
            libs = [{"-ldcmem": "-l:libdcmem.a"}.get(flag, flag) for flag in run(
                "pkg-config", "--cflags", "--libs", "--static", "dcmem", env=environment).split()]
        if program == "cxx":
            if not os.path.exists("/usr/bin/g++"):
                print("no g++: the header is not compiled as C++")
                continue
            text = os.path.join(directory, "open.cc")
            with open(text, "w", encoding="ascii") as file:
                file.write('#include <dcmem/dcmem.h>\nint main(int, char **v)\n{\n'
                           'struct dcmem *model;\n'
                           'if (dcmem_open(v[1], nullptr, &model)) return 1;\n'
                           'return dcmem_close(model) != nullptr;\n}\n')
        run(*compiler, "-Wall", "-Wextra", "-Werror", text, "-o", out, *libs, env=environment)
        clean = {name: value for name, value in environment.items() if name != "LD_LIBRARY_PATH"}
        said.append(run(out, container, *([] if program == "cxx" else ["model.norm.weight"]),
                        env=clean if program == "static" else environment))
    assert said[0] and said[0] == said[1], said


def check_units(root, prefix_dir, prefix):
    """The service starts what is installed, with the configuration that is; its user and its
    directory come from the files beside it."""
    units = os.path.join(prefix_dir, "lib/systemd/system")
    with open(os.path.join(units, "dcmemd.service"), encoding="ascii") as file:
        service = file.read()
    program, config = re.search(r"^ExecStart=(\S+) -c (\S+)$", service, re.M).groups()
    run(root + program, "--check-config", "-c", root + config)
    for name in re.search(r"^Requires=(.*)$", service, re.M).group(1).split():
        assert os.path.exists(os.path.join(units, name)), name
    user = re.search(r"^User=(.*)$", service, re.M).group(1)
    for tool, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        with open(os.path.join(prefix_dir, "lib", folder, "dcmem.conf"), encoding="ascii") as file:
            text = file.read()
        assert user in text.split(), (folder, text)
        if os.getuid() == 0 and prefix == "/usr" and shutil.which(tool):
            run(tool, *(["--create"] if "tmpfiles" in tool else []), f"--root={root}")


def main():
    if os.environ.get("DCMEM_TEST_BUILD", "plain") != "plain":
        print("programs without a sanitizer cannot link a library with one")
        return 77
    source, build, meson, prefix = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        root = os.path.join(directory, "root")
        run(meson, "install", "-C", build, "--no-rebuild", "--destdir", root)
        libdir, prefix_dir = check_files(source, root, prefix)
        check_library(libdir)
        check_programs(source, root, libdir, prefix_dir, directory)
        check_units(root, prefix_dir, prefix)
    return 0


if __name__ == "__main__":
    sys.exit(main())
