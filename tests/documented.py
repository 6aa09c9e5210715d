#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Manuals and completions say what the programs and the header say, and nothing else.

usage: documented.py SOURCE_ROOT DCMEM DCMEMD

Compared: verbs, their descriptions and options (dcmem --help; dcmem.1, the completions), options of
dcmemd (--help; dcmemd.8, the completions), keys of the configuration (conf/README.md;
dcmemd.json.5), functions of dcmem.h (libdcmem.3, and the symbol map by the linker's rules).
"""
import os
import re
import shutil
import subprocess
import sys

OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z]\b)")
wrong = []


def compare(where, found, expected):
    for word in sorted(set(expected) - set(found)):
        wrong.append(f"{where}: {word}: missing")
    for word in sorted(set(found) - set(expected)):
        wrong.append(f"{where}: {word}: the program has no such thing")


def help_of(*command):
    return subprocess.run(command + ("--help",), check=True, capture_output=True, text=True).stdout


def options_of_verb(text):
    """Options of the usage lines and of the list, not of the examples."""
    lines = text.split("\nExample")[0].splitlines()
    chosen, in_usage = [], True
    for line in lines:
        in_usage = in_usage and bool(line.strip())
        if in_usage or re.match(r"  -", line) or re.match(r"--\w", line):
            chosen.append(line)
    return set(OPTION.findall("\n".join(chosen))) - {"--help", "--version"}


def plain(roff):
    """The text of a manual page that uses man(7) fonts."""
    return re.sub(r"\\f[BIR]", "", roff).replace("\\-", "-")


def in_fish(text, program):
    """verb (or None) -> options, and verb -> description, of a fish completion."""
    options, verbs = {}, {}
    for line in text.splitlines():
        if not line.startswith(f"complete -c {program} "):
            continue
        found = re.search(r'-n "\$in ([a-z ]+)"', line)
        names = found.group(1).split() if found else [None]
        verb = re.search(r"-n \$verb -a (\w+) -d '(.*)'", line)
        if verb:
            verbs[verb.group(1)] = verb.group(2)
        for name in names:
            options.setdefault(name, set()).update(
                ["-" + short for short in re.findall(r" -s (\w)", line)] +
                ["--" + long for long in re.findall(r" -l ([a-z-]+)", line)])
    return options, verbs


def in_zsh(text):
    """The same of the zsh completion; dcmemd's options under "dcmemd"."""
    options = {}
    socket = {"--socket"} if "_dcmem_socket=('--socket[" in text else set()
    for verb, body in re.findall(r"^\t(\w+)\)\n((?:\t\t.*\n)+)", text, re.M):
        if not body.strip().startswith("_arguments"):
            continue
        options[verb] = set(re.findall(r"'\*?(--?[a-z-]+)\[", body)) | (
            socket if "$_dcmem_socket" in body else set())
        for group in re.findall(r"\{(-[^}]*)\}", body):
            options[verb].update(group.split(","))
    block = re.search(r"== dcmemd \]\]; then\n(.*?)\n\t\treturn", text, re.S).group(1)
    options["dcmemd"] = set(re.findall(r"'(?:\*|\(- \*\))?(--?[a-z-]+)\[", block))
    for group in re.findall(r"\{(-[^}]*)\}", block):
        options["dcmemd"].update(group.split(","))
    return options, dict(re.findall(r"^\t\t'(\w+):(.*)'$", text, re.M))


def in_bash(path, function, *words):
    """What bash offers for the last of these words."""
    script = (f'source "$0"; COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; {function}; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", script, path, *words], check=True, capture_output=True,
                          text=True)
    return set(done.stdout.split()) - {"--help", "--version"}


def main():
    root, tool, daemon = sys.argv[1:]

    def read(*path):
        with open(os.path.join(root, *path), encoding="utf-8") as file:
            return file.read()

    block = re.search(r"^Verbs:\n((?:  .*\n)+)", help_of(tool), re.M).group(1)
    verbs = dict(re.findall(r"^  (\w+) +(.*)$", block, re.M))
    options = {verb: options_of_verb(help_of(tool, verb)) for verb in verbs}
    assert verbs and all(options.values()), options

    man = plain(read("man", "dcmem.1"))
    synopsis = man.split(".SH DESCRIPTION")[0]
    compare("man/dcmem.1", re.findall(r"^\.SS (\w+)", man, re.M), verbs)
    bash = read("tools", "completions", "dcmem.bash")
    compare("dcmem.bash", re.search(r'verbs="([^"]*)"', bash).group(1).split(), verbs)
    bash = os.path.join(root, "tools", "completions", "dcmem.bash")
    compare("dcmem.bash", in_bash(bash, "_dcmem", tool, ""), verbs)
    fish_options, fish_verbs = in_fish(read("tools", "completions", "dcmem.fish"), "dcmem")
    zsh_options, zsh_verbs = in_zsh(read("tools", "completions", "_dcmem"))
    compare("dcmem.fish", fish_verbs.items(), verbs.items())
    compare("_dcmem", zsh_verbs.items(), verbs.items())
    for verb, expected in options.items():
        lines = re.findall(rf"^dcmem {verb} .*$", synopsis, re.M)
        compare(f"man/dcmem.1: {verb}", OPTION.findall(" ".join(lines)),
                expected - ({"--output"} if "-o" in expected else set()))
        compare(f"dcmem.bash: {verb}", in_bash(bash, "_dcmem", tool, verb, "-"), expected)
        compare(f"dcmem.fish: {verb}", fish_options.get(verb, ()), expected)
        compare(f"_dcmem: {verb}", zsh_options.get(verb, ()), expected)

    expected = set(OPTION.findall("\n".join(re.findall(r"^ +-.*$", help_of(daemon), re.M))))
    assert "--check-config" in expected, expected
    listed = re.findall(r"^\.It ((?:Fl .*)+)$", read("man", "dcmemd.8"), re.M)
    compare("man/dcmemd.8", ["-" + word for line in listed for word in
                             re.findall(r"(?:Fl|,) (-?[a-z][a-z-]*)", line.replace(", Fl", ","))],
            expected)
    compare("dcmemd.fish", in_fish(read("tools", "completions", "dcmemd.fish"), "dcmemd")[0][None],
            expected)
    compare("dcmem.bash: dcmemd", in_bash(bash, "_dcmemd", daemon, "-"),
            expected - {"--help", "--version"})
    compare("_dcmem: dcmemd", zsh_options["dcmemd"], expected)

    keys = re.findall(r"^\| `([a-z_]+)` ", read("conf", "README.md"), re.M)
    assert len(keys) > 10, keys
    compare("man/dcmemd.json.5", re.findall(r"^\.It Cm ([a-z_]+)", read("man", "dcmemd.json.5"),
                                            re.M), keys)

    header = read("include", "dcmem", "dcmem.h")
    functions = re.findall(r"^DCMEM_API [^;]*?\b(dcmem_\w+)\(", header, re.M)
    assert len(functions) > 20, functions
    compare("man/libdcmem.3", [
        name for line in re.findall(r"^\.It (Fn .*)$", read("man", "libdcmem.3"), re.M)
        for name in re.findall(r"Fn (\w+)", line)], functions)

    for shell, files in (("bash", ["dcmem.bash"]), ("zsh", ["_dcmem"]),
                         ("fish", ["dcmem.fish", "dcmemd.fish"])):
        if not shutil.which(shell):
            print(f"{shell} is not here: its completion was compared, not parsed")
            continue
        for file in files:
            done = subprocess.run([shell, "-n", os.path.join(root, "tools", "completions", file)],
                                  check=False, capture_output=True, text=True)
            if done.returncode or done.stderr:
                wrong.append(f"{file}: {done.stderr}")
    print("\n".join(wrong) or f"verbs: {' '.join(sorted(verbs))}; {len(functions)} functions")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
