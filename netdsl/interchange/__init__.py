"""Nets and weights of other programs; only here is anything transposed."""
