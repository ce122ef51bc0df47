"""Tests of the mirror: one image from a source to a target, over real sockets."""
