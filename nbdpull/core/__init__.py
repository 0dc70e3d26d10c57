"""What every folder may use: errors, ranges, threads, sizes, processes. Knows nothing of backups."""
