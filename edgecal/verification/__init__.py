"""edgecal beside PyTorch: a model and its adapters against reference files, or against PyTorch run now."""
