"""f-GRPO and f-HAL (Haldar et al., arXiv 2602.05946) for the RL framework verl."""

__version__ = "0.2.0"
