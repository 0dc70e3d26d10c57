"""What other programs call: the implementation of `import nbdpull`, private but for the names that its __all__ has."""
