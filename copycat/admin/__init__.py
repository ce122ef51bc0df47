"""The HTTP side: metrics, probes, the two actions, the read-only API and the status page.

It knows nothing of the controller: `app` hands it objects that fit the protocols of `actions`, `api` and `health`.
"""
