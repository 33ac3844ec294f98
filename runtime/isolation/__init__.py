"""Models in worker processes of their own, which talk the protocol of docs/worker-protocol.md."""
