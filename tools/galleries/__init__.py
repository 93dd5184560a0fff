"""Stores of features that outgrow one file: what they hold, the engines behind them, and what is done with them."""
