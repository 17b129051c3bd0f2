"""Pages and plots that need no network and, but for sorting and choosing, no script."""
