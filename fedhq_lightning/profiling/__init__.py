"""What lanes and kernels take on this host."""
