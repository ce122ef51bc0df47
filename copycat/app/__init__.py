"""The composition root: builds every object from the settings and owns every lifetime.

wiring     settings → the engine: transport, target, mirror
process    `copycat run`: informers, controller, listeners, the order of the shutdown
facade     what the listeners show of the controller
oneshot    `copycat mirror` and `copycat plan`: the same engine, no cluster
manifests  workloads from files
"""
