"""The service: HTTP, batching, storage and deployment. Holds no arithmetic and exports nothing."""
