"""What the server tells of itself beside its answers: figures, traces, logs, and a dashboard over them."""
