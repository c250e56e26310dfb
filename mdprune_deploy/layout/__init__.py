"""Where the bytes of the weights lie: the shared store and the blocked layout of this host."""
