"""Corpora: preparing, opening and streaming token data."""
