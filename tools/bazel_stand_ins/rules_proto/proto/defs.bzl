"""Bazel's native rules under the names that its tool packages load."""

proto_lang_toolchain = native.proto_lang_toolchain
