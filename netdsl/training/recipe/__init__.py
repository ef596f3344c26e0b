"""The contents of a `train` section: its keys and the tables behind them."""
