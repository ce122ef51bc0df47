"""The fault matrix: every row of it against the whole engine, over sockets."""
