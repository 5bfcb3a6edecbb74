"""Adapters of many tasks trained side by side: one process, one resident encoder, one optimiser an adapter."""
