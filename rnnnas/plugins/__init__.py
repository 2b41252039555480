"""Plug-ins: files and packages of the user's own that bring operations and search methods."""
