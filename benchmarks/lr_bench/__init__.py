"""What ``lr-bench`` is made of: suites, contestants, the engine that runs them, the store, and the analysis and report of what it holds."""
