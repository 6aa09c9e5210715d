# SPDX-License-Identifier: Apache-2.0
# fish completion of dcmemd(8). tests/documented.py compares it with `dcmemd --help`.

complete -c dcmemd -f
complete -c dcmemd -s c -l config -r -F -d 'read this configuration'
complete -c dcmemd -l check-config -d 'check the configuration and exit'
complete -c dcmemd -l socket -r -F -d 'path of the control socket'
complete -c dcmemd -l budget -x -d 'memory for everything, like 4GiB or 50%'
complete -c dcmemd -l io -x -a 'auto uring epoll' -d 'back end of the event loop'
complete -c dcmemd -l model -r -F -d 'load this container before listening'
complete -c dcmemd -l model-dir -x -a '(__fish_complete_directories)' -d 'allow loading from it'
complete -c dcmemd -l workers -x -d 'decode threads'
complete -c dcmemd -l ready-fd -x -d 'write READY to this descriptor'
complete -c dcmemd -l help -d 'explain the options'
complete -c dcmemd -l version -d 'tell the version'
