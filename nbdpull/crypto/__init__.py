"""Ciphers and keys of sealed stores: bytes in, bytes out."""
