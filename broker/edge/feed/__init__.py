"""The door for many verifiers: the feed alone, without the weight of a whole gRPC server."""
