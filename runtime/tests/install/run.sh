#!/bin/sh
# run.sh BUILD SOURCE: installs a build into a new directory, and builds and runs programs that find it
# there by CMake and by pkg-config.
set -eu
build=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" > "$work/log" || { cat "$work/log"; exit 1; }
cmake -S "$source" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$work/prefix" > "$work/log" &&
  cmake --build "$work/consumer" > "$work/log" || { cat "$work/log"; exit 1; }
for program in "$work"/consumer/consumer_c "$work"/consumer/consumer_cpp "$work"/consumer/consumer_static; do
  [ ! -e "$program" ] || "$program"
done
command -v pkg-config > /dev/null || { echo "no pkg-config: not tried"; exit 0; }
package=$(find "$work/prefix" -name pkgconfig)
export PKG_CONFIG_PATH="$package"
[ "$(pkg-config --variable=prefix mdprune)" = "$work/prefix" ] ||
  flags="--define-variable=prefix=$work/prefix"
# shellcheck disable=SC2046 # flags are words
cc "$source/consumer.c" -o "$work/consumer_pkg" $(pkg-config ${flags:-} --cflags --libs mdprune)
LD_LIBRARY_PATH="$package/.." "$work/consumer_pkg"
