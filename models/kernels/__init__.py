"""CPU inference kernels and exact rewrites of convolutions, with what each gains."""
