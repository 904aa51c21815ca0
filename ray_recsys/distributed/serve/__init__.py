"""The Serve graph: ingress → recall → rerank."""
