//! Loom models of the lock-free pieces of the engine.
