"""Training of adapters and of what they are compared with. Needs the extra `train`."""
