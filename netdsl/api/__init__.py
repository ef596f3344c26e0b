"""What `import netdsl` offers: nets, predictions and training."""
