//! The pure mathematics of masked diffusion, on the host.
