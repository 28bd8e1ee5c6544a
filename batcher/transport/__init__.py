"""The ways to the network: each takes claimed attempts and gives back bytes, and none judges them."""
