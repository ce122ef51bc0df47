"""The composition root: builds every object from the settings and owns every lifetime.

wiring     settings → the engine: transport, target, mirror
keychains  settings → who the program is to each registry
process    `copycat run`: the listeners, the Lease, the order of the shutdown
term       one controller and its informers, from the first list to the last copy
informers  which informers a configuration needs
facade     what the listeners show of the controller
failures   failures as Events on workloads
coverage   what is not watched, in words
probes     whether the program is well
oneshot    `copycat mirror` and `copycat plan`: the same engine, no cluster
manifests  workloads from files
"""
