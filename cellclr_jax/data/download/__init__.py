"""Fetches a release over HTTP, whole and sound, whatever the server does."""
