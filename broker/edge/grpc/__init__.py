"""The gRPC door: the API."""
