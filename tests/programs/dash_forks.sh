# shellcheck shell=dash
# Forks in each way that a POSIX shell can.  It cannot say from where but for the script: tests/kernel/test_shell_frames.py.
say() { printf '{"way": "%s", "forks": %d}\n' "$1" "$2"; }

printf '{"pid": %d}\n' $$
read -r _
say command 1
/bin/true
say pipeline 2
/bin/true | /bin/true
say substitution 1
: "$(:)"
say background 1
/bin/true &
wait
printf '{"ready": true}\n'
read -r _
