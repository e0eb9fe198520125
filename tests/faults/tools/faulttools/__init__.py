"""Tools that break things on purpose: a simulated disk, a small trainer on it, mutants of the store, a fault shim."""
