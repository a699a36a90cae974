"""DP-SGD inside each client, built on Opacus."""
