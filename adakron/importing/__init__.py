"""Other people's checkpoints made into artefacts. The only place where torch.load is called; no server imports it."""
