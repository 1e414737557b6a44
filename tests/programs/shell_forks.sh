# shellcheck shell=bash
# Forks in each way that bash can, and says before each from where: tests/kernel/test_shell_frames.py compares.
# The protocol is that of truth.h.
# shellcheck disable=SC2034
say() { # WAY FORKS LINE FUNCTION...
	printf '{"way": "%s", "forks": %d, "line": %d, "functions": "%s"}\n' "$1" "$2" "$3" "${*:4}"
}

printf '{"pid": %d}\n' $$
read -r _

inner() {
	say "in a function" 1 $((LINENO + 1)) "${FUNCNAME[@]}"
	/bin/true
}

outer() {
	inner
	say background 1 $((LINENO + 1)) "${FUNCNAME[@]}"
	/bin/true &
	wait
}

say "at the top" 1 $((LINENO + 1)) main
/bin/true
outer
say pipeline 2 $((LINENO + 1)) main
/bin/true | /bin/true
say subshell 1 $((LINENO + 1)) main
(:)
say "command substitution" 1 $((LINENO + 1)) main
x=$(:)
say "process substitution" 1 $((LINENO + 1)) main
: <(:)
for each in 1 2; do
	say loop 1 $((LINENO + 1)) main
	/bin/true
done
say condition 1 $((LINENO + 1)) main
if /bin/true; then :; fi
say "a function in a subshell" 1 $((LINENO + 1)) main
(inner; :)
# shellcheck source=/dev/null
. "${0%/*}/shell_sourced.sh"
trap 'say "in a trap" 1 $LINENO main; /bin/true' USR1
kill -USR1 $$
eval 'say eval 1 $LINENO main; /bin/true'
printf '{"ready": true}\n'
read -r _
