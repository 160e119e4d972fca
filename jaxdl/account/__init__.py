"""What a run costs: seconds, FLOPs, joules, and where they went."""
