"""Policy and critic: one module, built from what the user passes, and how it is optimised."""
