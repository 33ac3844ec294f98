"""Small reference networks, and the data set that is embedded for the demo, tests and examples."""
