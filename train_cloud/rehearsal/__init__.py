"""The embedded AWS and its machines: real HTTP, real processes, nothing outside loopback."""
