# SPDX-License-Identifier: Apache-2.0
# bash completion of dcmem(1) and dcmemd(8): verbs, options as `dcmem VERB --help` names them, files.

_dcmem() {
	local word=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]-}
	local verbs="pack unpack export verify ls load unload status tune stats cat bench generate plan"

	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "$verbs --help --version" -- "$word")
	elif [[ $word == -* ]]; then
		local options
		options=$("${COMP_WORDS[0]}" "$verb" --help 2>/dev/null | sed '/^Example/,$d' |
			grep -oE -- '(^|[ [(,|])--?[a-z][a-z-]*' | tr -d ' [(,|' | sort -u)
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
	else
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
	fi
}
complete -F _dcmem dcmem

_dcmemd() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} options

	if [ "$before" = --io ]; then
		mapfile -t COMPREPLY < <(compgen -W "auto uring epoll" -- "$word")
	elif [[ $word == -* ]]; then
		options=$("${COMP_WORDS[0]}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u)
		mapfile -t COMPREPLY < <(compgen -W "-c $options" -- "$word")
	else
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
	fi
}
complete -F _dcmemd dcmemd
