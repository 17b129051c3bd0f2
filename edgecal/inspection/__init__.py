"""What files and adapters are, before anything runs: facts (`report`), a diagnosis of adapters, their figures."""
