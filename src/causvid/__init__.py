"""Causal video diffusion."""
