"""What other programs call: the implementation of `import nbdpull`, private except for the names in its __all__."""
