"""The `native` target: one plan per domain over shared weights, for the C++ runtime."""
