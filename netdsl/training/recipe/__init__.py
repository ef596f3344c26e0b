"""What a `train` section asks for: its keys and the tables behind them."""
