"""The bytes of a store, and back. docs/format.md is their specification."""
