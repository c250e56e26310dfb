#!/bin/sh
# keep_output.sh FILE COMMAND...: runs the command and leaves what it prints in FILE; shows it only if
# the command fails.
file=$1
shift
mkdir -p "$(dirname "$file")"
"$@" > "$file" 2>&1 && exit 0
status=$?
cat "$file" >&2
exit $status
