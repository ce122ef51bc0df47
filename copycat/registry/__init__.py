"""The client for OCI and Docker v2 registries: the only package that speaks their protocol.

`Transport` owns the connections and what is known about hosts; `Repository` is one repository on
one registry. Protocol decisions follow the project's registry notes; each function names its source.
"""

from __future__ import annotations
