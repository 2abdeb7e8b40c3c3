"""What is known of the CUDA kernels without running them, and how their knobs are swept."""
