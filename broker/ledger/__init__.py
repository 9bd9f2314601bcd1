"""The record: entries, their exact bytes, and their hashes. Pure."""
