"""What a restore is made of: where disks come from and go, the proof, the copy, and what else of a domain returns."""
