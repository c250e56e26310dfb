"""What `mdprune bench` measures beside latency: the machine, energy, memory, operators, switching.

What is not there is absent from the results, with the reason; nothing is estimated in its place.
"""
