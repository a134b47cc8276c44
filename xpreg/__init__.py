"""Softmax-type regressions and two-layer exponential networks with exact second-order information."""
