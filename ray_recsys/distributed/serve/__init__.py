"""Ray Serve around the HTTP application: ingress → recall → rerank."""
