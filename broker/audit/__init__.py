"""What a stranger checks of a log, by public keys alone: the tree, the signatures, and that it happened in order."""
