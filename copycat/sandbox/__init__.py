"""Small, strict servers over real sockets: what `copycat demo` and the tests run against.

A registry (`sandbox.registry`) and a Kubernetes API (`sandbox.kube_api`), each in this process or,
with `python -m copycat.sandbox`, in one of its own.
"""
