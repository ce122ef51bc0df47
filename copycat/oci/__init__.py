"""The words of the OCI specifications as values: names, digests, platforms, manifests.

Nothing in here opens a connection or needs an event loop. Text and bytes become frozen values at
one door each (`Reference.parse`, `Digest.parse`, `Platform.parse`, `parse_document`) and are never
checked again.
"""

from __future__ import annotations
