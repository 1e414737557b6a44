# A part of shell_forks.sh.
# shellcheck shell=bash
say sourced 1 $((LINENO + 1)) source main
/bin/true
