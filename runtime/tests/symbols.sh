#!/bin/sh
# symbols.sh LIBRARY.so OBJECT...: the library exports mdp_* and nothing else, and an object that was
# compiled for an instruction set defines weak functions in its own namespace only: others, of the
# standard library, the linker could choose for code that runs on every processor.
set -eu
library=$1
shift
if nm -D --defined-only "$library" | grep ' [TWVBDRu] ' | grep -v ' mdp_'; then
  echo "exported by $library" >&2
  exit 1
fi
for object in "$@"; do
  if nm --defined-only "$object" | grep ' [WVu] ' |
    grep -v '7mdprune3cpu\(6avx512\|4avx2\|4neon\|8portable\)'; then
    echo "weak in $object" >&2
    exit 1
  fi
done
