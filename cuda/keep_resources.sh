#!/bin/sh
# keep_resources.sh COMPILER ARGUMENTS..: runs the compiler and writes what ptxas says about
# registers, stack and spills to OBJECT.resources, OBJECT being the argument of -o. Everything else
# it says stays on stderr.
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"

messages=$(mktemp) || exit 1
trap 'rm -f "$messages"' EXIT
"$@" 2>"$messages"
status=$?
report='^ptxas info|bytes stack frame|^$'
grep -E "$report" "$messages" >"$object.resources"
grep -Ev "$report" "$messages" >&2
exit "$status"
